package onced

import (
	"reflect"
	"testing"

	"google.golang.org/protobuf/proto"

	oncedv1 "onced.dev/go/onced/v1"
)

func roundTrip[T any](t *testing.T, codec Codec, value T, contentType, response string) {
	t.Helper()
	outcome, err := codec.Encode(value)
	if err != nil {
		t.Fatal(err)
	}
	if outcome.GetContentType() != contentType || string(outcome.GetResponse()) != response {
		t.Errorf("%v is %v", value, outcome)
	}
	for _, contentType := range []string{contentType, ""} {
		var back T
		outcome.ContentType = contentType
		if err := codec.Decode(outcome, &back); err != nil || !equal(back, value) {
			t.Errorf("%v came back as %v, %v", value, back, err)
		}
	}
}

func equal(a, b any) bool {
	if message, ok := a.(proto.Message); ok {
		return proto.Equal(message, b.(proto.Message))
	}
	return reflect.DeepEqual(a, b)
}

func TestValuesComeBackAsTheyWere(t *testing.T) {
	roundTrip(t, JSON, map[string]any{"ä": []any{1.0, "<€>"}}, "application/json", `{"ä":[1,"<€>"]}`)
	roundTrip[any](t, JSON, nil, "application/json", "null")
	roundTrip(t, JSON, struct{ N int }{1}, "application/json", `{"N":1}`)
	roundTrip(t, Bytes, []byte{0, 255}, "application/octet-stream", "\x00\xff")
	roundTrip(t, Text, "zwölf €\n", "text/plain; charset=utf-8", "zwölf €\n")
	roundTrip(t, Protobuf, &oncedv1.Checkpoint{Sequence: 3}, `application/x-protobuf; messageType="onced.v1.Checkpoint"`, "\x08\x03")
}

func TestARawOutcomeIsHandedOnWhole(t *testing.T) {
	outcome := &oncedv1.Outcome{Result: &oncedv1.Outcome_Response{Response: []byte("x")}, ContentType: "image/png", Metadata: map[string]string{"a": "b"}}
	encoded, err := Raw.Encode(outcome)
	var back *oncedv1.Outcome
	if err != nil || Raw.Decode(encoded, &back) != nil || !proto.Equal(outcome, back) {
		t.Errorf("%v, %v", back, err)
	}
}

func TestEmptyBytesAreAResponse(t *testing.T) {
	for _, none := range [][]byte{nil, {}} {
		if outcome, err := Bytes.Encode(none); err != nil || outcome.GetResult() == nil {
			t.Errorf("%v, %v", outcome, err)
		}
	}
}

func TestWhatIsOfAnotherTypeIsNotRead(t *testing.T) {
	var (
		text    string
		data    []byte
		value   any
		message *oncedv1.Checkpoint
	)
	for name, test := range map[string]struct {
		codec       Codec
		contentType string
		response    string
		into        any
	}{
		"JSON of text":           {JSON, "text/plain", "1", &value},
		"JSON that is none":      {JSON, "application/json", `{"n":`, &value},
		"JSON that is not UTF-8": {JSON, "application/json", "\"\xff\"", &value},
		"bytes of JSON":          {Bytes, "application/json", "1", &data},
		"bytes into text":        {Bytes, "application/octet-stream", "1", &text},
		"text of bytes":          {Text, "application/octet-stream", "1", &text},
		"text that is not UTF-8": {Text, "text/plain; charset=utf-8", "\xff", &text},
		"text in Latin-1":        {Text, "text/plain; charset=iso-8859-1", "a", &text},
		"text into bytes":        {Text, "text/plain; charset=utf-8", "1", &data},
		"another message":        {Protobuf, `application/x-protobuf; messageType="onced.v1.Claim"`, "", &message},
		"a broken message":       {Protobuf, "application/x-protobuf", "\xff", &message},
		"a message into text":    {Protobuf, "application/x-protobuf", "", &text},
		"raw into text":          {Raw, "", "", &text},
	} {
		outcome := &oncedv1.Outcome{Result: &oncedv1.Outcome_Response{Response: []byte(test.response)}, ContentType: test.contentType}
		if err := test.codec.Decode(outcome, test.into); err == nil {
			t.Errorf("%s: it was read", name)
		}
	}
}

func TestWhatIsNoValueOfTheCodecIsNotEncoded(t *testing.T) {
	for name, test := range map[string]struct {
		codec Codec
		value any
	}{
		"no JSON": {JSON, make(chan int)}, "no bytes": {Bytes, "text"}, "no text": {Text, 1}, "no UTF-8": {Text, "\xff"},
		"no message": {Protobuf, 1}, "a nil message": {Protobuf, (*oncedv1.Claim)(nil)}, "nothing": {Protobuf, nil}, "raw": {Raw, 1},
	} {
		if outcome, err := test.codec.Encode(test.value); err == nil {
			t.Errorf("%s: %v", name, outcome)
		}
	}
}
