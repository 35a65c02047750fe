package onced

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"reflect"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"onced.dev/go/onced/internal/canonical"
	oncedv1 "onced.dev/go/onced/v1"
)

// A Codec turns what the work returns into an outcome, and an outcome into what a duplicate gets. See [Using].
type Codec interface {
	// Encode is the outcome of a value. It is called once the work is done: where it fails, the key is in doubt.
	Encode(value any) (*oncedv1.Outcome, error)
	// Decode reads a response into what into points at, a variable of the type that the work returns. Where it fails,
	// nothing runs.
	Decode(outcome *oncedv1.Outcome, into any) error
}

// The codecs. Each reads outcomes of its own content type, and those without one.
var (
	// JSON is for whatever encoding/json is for.
	JSON Codec = jsonCodec{}
	// Bytes is for []byte, as they are.
	Bytes Codec = bytesCodec{}
	// Text is for strings of UTF-8.
	Text Codec = textCodec{}
	// Protobuf is for pointers to generated messages.
	Protobuf Codec = protobufCodec{}
	// Raw is for *oncedv1.Outcome itself: a response with a content type and metadata of its own.
	Raw Codec = rawCodec{}
)

func respond(response []byte, contentType string) *oncedv1.Outcome {
	if response == nil {
		response = []byte{}
	}
	return &oncedv1.Outcome{Result: &oncedv1.Outcome_Response{Response: response}, ContentType: contentType}
}

// expect reads the parameters of a content type, if it is the one that is wanted, or none.
func expect(outcome *oncedv1.Outcome, wanted string) (parameters map[string]string, err error) {
	told := outcome.GetContentType()
	if told == "" {
		return nil, nil
	}
	media, parameters, err := mime.ParseMediaType(told)
	if err != nil || media != wanted {
		return nil, fmt.Errorf("the outcome is %q, and %s was expected", told, wanted)
	}
	return parameters, nil
}

// into is the variable of type T to decode into.
func into[T any](target any) (*T, error) {
	variable, ok := target.(*T)
	if !ok {
		return nil, fmt.Errorf("this codec is for work that returns %v, not %v", reflect.TypeFor[T](), reflect.TypeOf(target).Elem())
	}
	return variable, nil
}

func from[T any](value any) (T, error) {
	typed, ok := value.(T)
	if !ok {
		return typed, fmt.Errorf("this codec is for work that returns %v, not %T", reflect.TypeFor[T](), value)
	}
	return typed, nil
}

type jsonCodec struct{}

func (jsonCodec) Encode(value any) (*oncedv1.Outcome, error) {
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		return nil, err
	}
	return respond(bytes.TrimSuffix(text.Bytes(), []byte("\n")), "application/json"), nil
}

func (jsonCodec) Decode(outcome *oncedv1.Outcome, target any) error {
	if _, err := expect(outcome, "application/json"); err != nil {
		return err
	}
	if !utf8.Valid(outcome.GetResponse()) {
		return errors.New("the outcome is not UTF-8")
	}
	return json.Unmarshal(outcome.GetResponse(), target)
}

type bytesCodec struct{}

func (bytesCodec) Encode(value any) (*oncedv1.Outcome, error) {
	data, err := from[[]byte](value)
	return respond(data, "application/octet-stream"), err
}

func (bytesCodec) Decode(outcome *oncedv1.Outcome, target any) error {
	variable, err := into[[]byte](target)
	if err != nil {
		return err
	}
	if _, err := expect(outcome, "application/octet-stream"); err != nil {
		return err
	}
	*variable = outcome.GetResponse()
	return nil
}

type textCodec struct{}

func (textCodec) Encode(value any) (*oncedv1.Outcome, error) {
	text, err := from[string](value)
	if err == nil && !utf8.ValidString(text) {
		err = errors.New("the text is not UTF-8")
	}
	return respond([]byte(text), "text/plain; charset=utf-8"), err
}

func (textCodec) Decode(outcome *oncedv1.Outcome, target any) error {
	variable, err := into[string](target)
	if err != nil {
		return err
	}
	parameters, err := expect(outcome, "text/plain")
	if err != nil {
		return err
	}
	if charset := parameters["charset"]; charset != "" && !strings.EqualFold(charset, "utf-8") {
		return fmt.Errorf("the outcome is text in %s, and not in UTF-8", charset)
	}
	if !utf8.Valid(outcome.GetResponse()) {
		return errors.New("the outcome is not UTF-8")
	}
	*variable = string(outcome.GetResponse())
	return nil
}

type protobufCodec struct{}

func (protobufCodec) Encode(value any) (*oncedv1.Outcome, error) {
	message, err := from[proto.Message](value)
	if err != nil {
		return nil, err
	}
	data, err := canonical.Encode(message)
	if err != nil {
		return nil, err
	}
	contentType := fmt.Sprintf("application/x-protobuf; messageType=%q", message.ProtoReflect().Descriptor().FullName())
	return respond(data, contentType), nil
}

func (protobufCodec) Decode(outcome *oncedv1.Outcome, target any) error {
	variable := reflect.ValueOf(target).Elem()
	if variable.Kind() != reflect.Pointer {
		return fmt.Errorf("this codec is for work that returns a pointer to a generated message, not %v", variable.Type())
	}
	fresh := reflect.New(variable.Type().Elem())
	message, err := from[proto.Message](fresh.Interface())
	if err != nil {
		return err
	}
	parameters, err := expect(outcome, "application/x-protobuf")
	if err != nil {
		return err
	}
	wanted := string(message.ProtoReflect().Descriptor().FullName())
	if told := parameters["messagetype"]; told != "" && told != wanted {
		return fmt.Errorf("the outcome is a %s, and %s was expected", told, wanted)
	}
	if err := proto.Unmarshal(outcome.GetResponse(), message); err != nil {
		return err
	}
	variable.Set(fresh)
	return nil
}

type rawCodec struct{}

func (rawCodec) Encode(value any) (*oncedv1.Outcome, error) {
	return from[*oncedv1.Outcome](value)
}

func (rawCodec) Decode(outcome *oncedv1.Outcome, target any) error {
	variable, err := into[*oncedv1.Outcome](target)
	if err != nil {
		return err
	}
	*variable = outcome
	return nil
}
