package canonical

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	jsonv1 "github.com/go-json-experiment/json/v1"
)

// The largest integer that every language reads as it is written.
const maxSafeInteger = 1<<53 - 1

// TextOf is a value as encoding/json writes it, but refuses strings that are not UTF-8.
func TextOf(value any) ([]byte, error) {
	return json.Marshal(value, jsonv1.DefaultOptionsV1(), jsontext.AllowInvalidUTF8(false))
}

// JSON is the canonical form of a text, by RFC 8785. It refuses integers beyond 2⁵³ − 1 either way, numbers beyond the
// largest double, lone surrogates, and a key twice in an object.
func JSON(text []byte) ([]byte, error) {
	// The decoder refuses what is no I-JSON (RFC 7493), but for the numbers.
	decoder := jsontext.NewDecoder(bytes.NewReader(text))
	for {
		token, err := decoder.ReadToken()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if token.Kind() == '0' {
			if err := checkNumber(token.String()); err != nil {
				return nil, err
			}
		}
	}
	canonical := jsontext.Value(bytes.Clone(text))
	if err := canonical.Canonicalize(); err != nil {
		return nil, err
	}
	return canonical, nil
}

func checkNumber(number string) error {
	if strings.ContainsAny(number, ".eE") {
		if _, err := strconv.ParseFloat(number, 64); err != nil {
			return fmt.Errorf("%s is a number beyond the largest double", number)
		}
		return nil
	}
	integer, err := strconv.ParseInt(number, 10, 64)
	if err != nil || integer > maxSafeInteger || integer < -maxSafeInteger {
		return fmt.Errorf("%s is an integer beyond 2^53 - 1: write it as a string", number)
	}
	return nil
}

// Fields is the canonical form of an object whose keys are these JSON pointers (RFC 6901), and whose values are what they
// point at in a text. What is not there is left out; if nothing is there at all, that is an error.
func Fields(text []byte, pointers []string) ([]byte, error) {
	if !jsontext.Value(text).IsValid() {
		_, err := JSON(text) // It says why.
		return nil, errors.Join(errors.New("this is not JSON that can be read"), err)
	}
	found := map[string]jsontext.Value{}
	for _, pointer := range pointers {
		if !jsontext.Pointer(pointer).IsValid() {
			return nil, fmt.Errorf("%q is no JSON pointer, such as \"/order/id\"", pointer)
		}
		value := jsontext.Value(text)
		there := true
		for part := range jsontext.Pointer(pointer).Tokens() {
			if value, there = step(value, part); !there {
				break
			}
		}
		if there {
			found[pointer] = value
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("nothing is there of %q", pointers)
	}
	selected, err := json.Marshal(found)
	if err != nil {
		return nil, err
	}
	return JSON(selected)
}

// step is the member or element of a value that one part of a pointer names.
func step(value jsontext.Value, part string) (jsontext.Value, bool) {
	decoder := jsontext.NewDecoder(bytes.NewReader(value))
	start, err := decoder.ReadToken()
	if err != nil {
		return nil, false
	}
	var isName func(index int) bool
	switch start.Kind() {
	case '{':
		isName = func(int) bool {
			name, err := decoder.ReadToken()
			return err == nil && name.String() == part
		}
	case '[':
		isName = func(index int) bool { return strconv.Itoa(index) == part }
	default:
		return nil, false
	}
	for index := 0; decoder.PeekKind() != '}' && decoder.PeekKind() != ']'; index++ {
		named := isName(index)
		member, err := decoder.ReadValue()
		if err != nil {
			return nil, false
		}
		if named {
			return member.Clone(), true
		}
	}
	return nil, false
}
