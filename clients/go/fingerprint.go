package onced

import (
	"crypto/sha256"
	"fmt"

	"google.golang.org/protobuf/proto"

	"onced.dev/go/onced/internal/canonical"
)

// FingerprintBytes is a fingerprint of bytes, of 32 bytes: see [Fingerprint].
func FingerprintBytes(data []byte) []byte {
	digest := sha256.Sum256(data)
	return digest[:]
}

// FingerprintJSON is a fingerprint of a value as encoding/json writes it, or of a text ([json.RawMessage]): the same for every
// order of keys and every spelling of a number, in every language.
//
// It fails for integers beyond 2⁵³ − 1 either way (write them as strings), NaN and infinities, strings that are not
// Unicode, and texts in which an object has a key twice.
//
// [json.RawMessage]: https://pkg.go.dev/encoding/json#RawMessage
func FingerprintJSON(value any) ([]byte, error) {
	return fingerprintJSON(value, canonical.JSON)
}

// FingerprintFields is a fingerprint of some fields of such a value, named by JSON pointers (RFC 6901) such as "/order/id".
// What is not there is left out. It fails if nothing is there at all, and as [FingerprintJSON] does.
func FingerprintFields(value any, pointers ...string) ([]byte, error) {
	return fingerprintJSON(value, func(text []byte) ([]byte, error) { return canonical.Fields(text, pointers) })
}

func fingerprintJSON(value any, form func([]byte) ([]byte, error)) ([]byte, error) {
	text, err := canonical.TextOf(value)
	if err == nil {
		text, err = form(text)
	}
	if err != nil {
		return nil, fmt.Errorf("onced: no fingerprint can be made of this: %w", err)
	}
	return FingerprintBytes(text), nil
}

// FingerprintProto is a fingerprint of a message and its type. It fails for messages with unknown fields.
func FingerprintProto(message proto.Message) ([]byte, error) {
	data, err := canonical.EncodeKnown(message)
	if err != nil {
		return nil, fmt.Errorf("onced: no fingerprint can be made of this: %w", err)
	}
	name := string(message.ProtoReflect().Descriptor().FullName())
	return FingerprintBytes(append([]byte(name+"\x00"), data...)), nil
}
