package canonical

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/structpb"
)

// A message with a choice between fields 1 and 9, field 5 between them, and itself within and repeated.
const schema = `
name: "t.proto" package: "t" syntax: "proto3"
message_type {
  name: "M"
  oneof_decl { name: "choice" }
  field { name: "low" number: 1 type: TYPE_INT32 oneof_index: 0 label: LABEL_OPTIONAL json_name: "low" }
  field { name: "high" number: 9 type: TYPE_INT32 oneof_index: 0 label: LABEL_OPTIONAL json_name: "high" }
  field { name: "middle" number: 5 type: TYPE_INT32 label: LABEL_OPTIONAL json_name: "middle" }
  field { name: "within" number: 7 type: TYPE_MESSAGE type_name: ".t.M" label: LABEL_OPTIONAL json_name: "within" }
  field { name: "all" number: 3 type: TYPE_MESSAGE type_name: ".t.M" label: LABEL_REPEATED json_name: "all" }
}`

func TestFieldsAreInTheOrderOfTheirNumbersAtEveryDepth(t *testing.T) {
	described := &descriptorpb.FileDescriptorProto{}
	if err := prototext.Unmarshal([]byte(schema), described); err != nil {
		t.Fatal(err)
	}
	file, err := protodesc.NewFile(described, nil)
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string][]byte{
		`{"low":1,"middle":2}`:  {0x08, 1, 0x28, 2},
		`{"high":1,"middle":2}`: {0x28, 2, 0x48, 1},
		`{"within":{"middle":2,"low":1},"all":[{"high":3,"middle":4},{"low":0}],"high":5}`: {
			0x1a, 4, 0x28, 4, 0x48, 3, 0x1a, 2, 0x08, 0, 0x3a, 4, 0x08, 1, 0x28, 2, 0x48, 5,
		},
	} {
		message := dynamicpb.NewMessage(file.Messages().Get(0))
		if err := protojson.Unmarshal([]byte(text), message); err != nil {
			t.Fatal(err)
		}
		encoded, err := EncodeKnown(message)
		if err != nil || !bytes.Equal(encoded, want) {
			t.Errorf("%s: %x, %v", text, encoded, err)
		}
	}
}

func TestUnknownFieldsAreKeptByTheirNumbers(t *testing.T) {
	message := structpb.NewStringValue("a") // Field 3.
	message.ProtoReflect().SetUnknown([]byte{0x40, 1, 0x38, 2})
	encoded, err := Encode(message)
	if want := []byte{0x1a, 1, 'a', 0x38, 2, 0x40, 1}; err != nil || !bytes.Equal(encoded, want) {
		t.Errorf("%x, %v", encoded, err)
	}
}

func TestEntriesOfMapsAreInTheOrderOfTheirKeys(t *testing.T) {
	message, err := structpb.NewStruct(map[string]any{"b": true, "a": map[string]any{"d": nil, "c": 1.0}})
	if err != nil {
		t.Fatal(err)
	}
	once, err := EncodeKnown(message)
	if err != nil {
		t.Fatal(err)
	}
	for _, earlier := range []string{"a", "c", "d"} {
		later := map[string]string{"a": "b", "c": "d", "d": "b"}[earlier]
		if bytes.Index(once, []byte("\x0a\x01"+earlier)) > bytes.Index(once, []byte("\x0a\x01"+later)) {
			t.Errorf("%s comes after %s in %q", earlier, later, once)
		}
	}
}
