// Package canonical writes JSON and protobuf so that the same value is the same bytes, in every language.
package canonical

import (
	"errors"
	"fmt"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// Encode is the deterministic encoding of a message: fields by number, map entries by key. Unknown fields are kept, by
// their numbers as well.
func Encode(message proto.Message) ([]byte, error) {
	return encode(message, false)
}

// EncodeKnown is the same, and refuses unknown fields.
func EncodeKnown(message proto.Message) ([]byte, error) {
	return encode(message, true)
}

func encode(message proto.Message, knownOnly bool) ([]byte, error) {
	if message == nil || !message.ProtoReflect().IsValid() {
		return nil, errors.New("there is no message")
	}
	// This sorts map entries. Fields it leaves in an order of its own.
	wire, err := proto.MarshalOptions{Deterministic: true}.Marshal(message)
	if err != nil {
		return nil, err
	}
	return wire, sortFields(wire, message.ProtoReflect().Descriptor(), knownOnly)
}

// sortFields puts the fields of an encoded message in the order of their numbers, in place, and those of the messages in it.
func sortFields(wire []byte, message protoreflect.MessageDescriptor, knownOnly bool) error {
	type field struct {
		number protowire.Number
		bytes  []byte
	}
	var fields []field
	for rest := wire; len(rest) > 0; {
		number, kind, tagLength := protowire.ConsumeTag(rest)
		if tagLength < 0 {
			return protowire.ParseError(tagLength)
		}
		length := protowire.ConsumeFieldValue(number, kind, rest[tagLength:])
		if length < 0 {
			return protowire.ParseError(length)
		}
		length += tagLength
		known := find(message, number)
		if known == nil && knownOnly {
			return fmt.Errorf("%s has an unknown field, %d", message.FullName(), number)
		}
		if known != nil && known.Message() != nil {
			var inner []byte
			switch kind {
			case protowire.BytesType:
				inner, _ = protowire.ConsumeBytes(rest[tagLength:])
			case protowire.StartGroupType:
				inner, _ = protowire.ConsumeGroup(number, rest[tagLength:])
			}
			if err := sortFields(inner, known.Message(), knownOnly); err != nil {
				return err
			}
		}
		fields = append(fields, field{number, rest[:length]})
		rest = rest[length:]
	}
	byNumber := func(a, b field) int { return int(a.number) - int(b.number) }
	if slices.IsSortedFunc(fields, byNumber) {
		return nil
	}
	slices.SortStableFunc(fields, byNumber)
	sorted := make([]byte, 0, len(wire))
	for _, field := range fields {
		sorted = append(sorted, field.bytes...)
	}
	copy(wire, sorted)
	return nil
}

// find is the field of that number, be it an extension; nil if it is unknown.
func find(message protoreflect.MessageDescriptor, number protowire.Number) protoreflect.FieldDescriptor {
	if field := message.Fields().ByNumber(number); field != nil {
		return field
	}
	extension, err := protoregistry.GlobalTypes.FindExtensionByNumber(message.FullName(), number)
	if err != nil {
		return nil
	}
	return extension.TypeDescriptor()
}
