package onced

import (
	"encoding/hex"
	"encoding/json"
	"math"
	"os"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"onced.dev/go/onced/internal/canonical"
	oncedv1 "onced.dev/go/onced/v1"
)

type vectors struct {
	Bytes []struct {
		Data   []byte
		Digest string
	}
	JSON        []struct{ Text, Canonical, Digest string }
	JSONRefused []struct{ Text, Why string } `json:"json_refused"`
	Fields      []struct {
		Text, Canonical, Digest string
		Pointers                []string
	}
	FieldsRefused []struct {
		Text, Why string
		Pointers  []string
	} `json:"fields_refused"`
	Protobuf []struct {
		Type, Digest string
		JSON         json.RawMessage
		Encoded      []byte
	}
}

func readVectors(t *testing.T) vectors {
	t.Helper()
	text, err := os.ReadFile("../vectors/fingerprints.json")
	if err != nil {
		t.Fatal(err)
	}
	var v vectors
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	for name, count := range map[string]int{
		"bytes": len(v.Bytes), "json": len(v.JSON), "json_refused": len(v.JSONRefused), "fields": len(v.Fields),
		"fields_refused": len(v.FieldsRefused), "protobuf": len(v.Protobuf),
	} {
		if count == 0 {
			t.Fatalf("there are no vectors of %s", name)
		}
	}
	return v
}

func TestFingerprintsAreThoseOfTheVectors(t *testing.T) {
	v := readVectors(t)
	for _, vector := range v.Bytes {
		if digest := hex.EncodeToString(FingerprintBytes(vector.Data)); digest != vector.Digest {
			t.Errorf("%x: %s", vector.Data, digest)
		}
	}
	for _, vector := range v.JSON {
		digest, err := FingerprintJSON(json.RawMessage(vector.Text))
		form, _ := canonical.JSON([]byte(vector.Text))
		if err != nil || hex.EncodeToString(digest) != vector.Digest || string(form) != vector.Canonical {
			t.Errorf("%s: %s, %v", vector.Text, form, err)
		}
	}
	for _, vector := range v.Fields {
		digest, err := FingerprintFields(json.RawMessage(vector.Text), vector.Pointers...)
		form, _ := canonical.Fields([]byte(vector.Text), vector.Pointers)
		if err != nil || hex.EncodeToString(digest) != vector.Digest || string(form) != vector.Canonical {
			t.Errorf("%s %q: %s, %v", vector.Text, vector.Pointers, form, err)
		}
	}
	for _, vector := range v.Protobuf {
		kind, err := protoregistry.GlobalTypes.FindMessageByName(protoreflect.FullName(vector.Type))
		if err != nil {
			t.Fatal(err)
		}
		message := kind.New().Interface()
		if err := protojson.Unmarshal(vector.JSON, message); err != nil {
			t.Fatal(err)
		}
		digest, err := FingerprintProto(message)
		encoded, _ := canonical.Encode(message)
		if err != nil || hex.EncodeToString(digest) != vector.Digest || string(encoded) != string(vector.Encoded) {
			t.Errorf("%s %s: %x, %v", vector.Type, vector.JSON, encoded, err)
		}
	}
}

func TestWhatTheVectorsRefuseIsRefused(t *testing.T) {
	v := readVectors(t)
	for _, vector := range v.JSONRefused {
		if digest, err := FingerprintJSON(json.RawMessage(vector.Text)); err == nil {
			t.Errorf("%q (%s): %x", vector.Text, vector.Why, digest)
		}
	}
	for _, vector := range v.FieldsRefused {
		if digest, err := FingerprintFields(json.RawMessage(vector.Text), vector.Pointers...); err == nil {
			t.Errorf("%q %q (%s): %x", vector.Text, vector.Pointers, vector.Why, digest)
		}
	}
}

func TestAValueHasTheFingerprintOfItsText(t *testing.T) {
	type order struct {
		Amount   float64 `json:"amount"`
		Currency string  `json:"currency,omitempty"`
		Items    []int   `json:"items"`
	}
	of, err := FingerprintJSON(order{Amount: 10.5, Currency: "EUR"})
	if err != nil {
		t.Fatal(err)
	}
	text, err := FingerprintJSON(json.RawMessage(`{"items": null, "currency": "EUR", "amount": 10.50}`))
	if err != nil || string(of) != string(text) {
		t.Errorf("%x is not %x, %v", of, text, err)
	}
	for _, unfit := range []any{math.NaN(), math.Inf(1), "\xff", map[string]int{"\xff": 1}, int64(1) << 53, func() {}} {
		if digest, err := FingerprintJSON(unfit); err == nil {
			t.Errorf("%v: %x", unfit, digest)
		}
	}
}

func TestAMessageWithUnknownFieldsHasNoFingerprint(t *testing.T) {
	unknown := func() *oncedv1.Outcome {
		message := &oncedv1.Outcome{}
		message.ProtoReflect().SetUnknown([]byte{0x98, 0x06, 1})
		return message
	}
	for name, message := range map[string]proto.Message{
		"itself": unknown(),
		"within": &oncedv1.Completed{Outcome: unknown()},
		"none":   (*oncedv1.Outcome)(nil),
		"nil":    nil,
	} {
		if digest, err := FingerprintProto(message); err == nil {
			t.Errorf("%s: %x", name, digest)
		}
	}
}
