package idempotency

import (
	"encoding/hex"
	"encoding/json"
	"os"
	"strings"
	"testing"
)

func TestKeysScopesAndFingerprintsAreThoseOfTheVectors(t *testing.T) {
	text, err := os.ReadFile("../../../vectors/fingerprints.json")
	if err != nil {
		t.Fatal(err)
	}
	var v struct {
		Keys        []struct{ Header, Key string }
		KeysRefused []struct{ Header string } `json:"keys_refused"`
		Scope       []struct{ Scope, Key, Stored string }
		HTTP        []struct {
			Method, Target, Digest string
			Body                   []byte
		}
	}
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	if len(v.Keys) == 0 || len(v.KeysRefused) == 0 || len(v.Scope) == 0 || len(v.HTTP) == 0 {
		t.Fatal("there are no vectors")
	}
	for _, vector := range v.Keys {
		if key, ok := ParseKey(vector.Header, false); !ok || key != vector.Key {
			t.Errorf("%q: %q, %v", vector.Header, key, ok)
		}
	}
	for _, vector := range v.KeysRefused {
		if key, ok := ParseKey(vector.Header, false); ok {
			t.Errorf("%q: %q", vector.Header, key)
		}
	}
	for _, vector := range v.Scope {
		if stored := Scoped(vector.Scope, vector.Key); stored != vector.Stored {
			t.Errorf("%+v: %q", vector, stored)
		}
	}
	for _, vector := range v.HTTP {
		if digest := hex.EncodeToString(Fingerprint(vector.Body, "http", vector.Method, vector.Target)); digest != vector.Digest {
			t.Errorf("%+v: %s", vector, digest)
		}
	}
}

func TestAKeyWithAScopeIsShorter(t *testing.T) {
	if _, ok := ParseKey(strings.Repeat("x", 479), true); !ok {
		t.Error("479 bytes are refused")
	}
	if _, ok := ParseKey(strings.Repeat("x", 480), true); ok {
		t.Error("480 bytes are not refused")
	}
}
