// Package idempotency is what the middleware for HTTP and that for gRPC have in common: how a key is read from a request, and
// by what names its refusals go.
package idempotency

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strings"

	"onced.dev/go/onced"
)

// The longest key, in bytes.
const (
	keyMaxBytes       = 512
	scopedKeyMaxBytes = keyMaxBytes - scopeDigits - 1
	scopeDigits       = 32
)

// A Code says why a request was refused.
type Code string

// All of them.
const (
	KeyMissing          Code = "IDEMPOTENCY_KEY_MISSING"
	KeyInvalid          Code = "IDEMPOTENCY_KEY_INVALID"
	ScopeMissing        Code = "SCOPE_MISSING"
	InProgress          Code = "REQUEST_IN_PROGRESS"
	ClaimLost           Code = "CLAIM_LOST"
	InDoubt             Code = "IN_DOUBT"
	TooLarge            Code = "REQUEST_TOO_LARGE"
	FingerprintMismatch Code = "FINGERPRINT_MISMATCH"
	NotStorable         Code = "RESPONSE_NOT_STORABLE"
	Refused             Code = "REFUSED"
	Unavailable         Code = "UNAVAILABLE"
)

// Why is the sentence that goes with a code.
func (c Code) Why() string {
	switch c {
	case KeyMissing:
		return "This request needs an idempotency key: a text of the caller's own, the same for each repetition."
	case KeyInvalid:
		return "The idempotency key is to be one quoted string or plain text: printable ASCII, 1 to 512 bytes (479 with a scope)."
	case ScopeMissing:
		return "The request does not say whose idempotency key it has."
	case InProgress:
		return "The same request is being worked on. Repeat it later."
	case ClaimLost:
		return "Another attempt at this request took over, and its answer is what counts. Repeat the request to get it."
	case InDoubt:
		return "What an earlier attempt at this request did is unknown. An operator must look."
	case TooLarge:
		return "The request is larger than one with an idempotency key may be."
	case FingerprintMismatch:
		return "The idempotency key was used for another request."
	case NotStorable:
		return "The request was carried out, and its answer is one that cannot be stored."
	case Refused:
		return "The request could not be coordinated with its repetitions. The log of the service says why."
	case Unavailable:
		return "Whether this request was made before cannot be found out now. Nothing was done; repeat it later."
	default:
		return string(c)
	}
}

// CodeOf is the code of an error of onced.Run, if the work did not run or its outcome does not count.
func CodeOf(err error) Code {
	var refusal *onced.Refusal
	var unavailable *onced.UnavailableError
	switch {
	case errors.Is(err, onced.ErrInProgress):
		return InProgress
	case errors.Is(err, onced.ErrInDoubt):
		return InDoubt
	case errors.Is(err, onced.ErrClaimLost):
		return ClaimLost
	case !errors.Is(err, onced.ErrNotBegun):
		return Refused // An outcome that the middleware did not store.
	case errors.As(err, &unavailable), !errors.As(err, &refusal):
		return Unavailable // No server, one that is set up wrong, or a client that is closed: onced cannot be asked.
	case refusal.Reason == "FINGERPRINT_MISMATCH":
		return FingerprintMismatch
	default:
		return Refused
	}
}

// ParseKey reads the key of a request from a header: a quoted string of RFC 9651, or plain text.
func ParseKey(header string, scoped bool) (key string, ok bool) {
	key = strings.Trim(header, " ")
	if strings.HasPrefix(key, `"`) {
		if key, ok = unquote(key); !ok {
			return "", false
		}
	}
	most := keyMaxBytes
	if scoped {
		most = scopedKeyMaxBytes
	}
	if len(key) == 0 || len(key) > most {
		return "", false
	}
	for _, char := range []byte(key) {
		if char < ' ' || char > '~' {
			return "", false
		}
	}
	return key, true
}

// unquote reads a quoted string, in which a backslash comes before quotes and backslashes, and nothing else.
func unquote(quoted string) (text string, ok bool) {
	var read strings.Builder
	for rest := quoted[1:]; rest != ""; rest = rest[1:] {
		switch rest[0] {
		case '"':
			return read.String(), len(rest) == 1
		case '\\':
			rest = rest[1:]
			if rest == "" || (rest[0] != '"' && rest[0] != '\\') {
				return "", false
			}
		}
		read.WriteByte(rest[0])
	}
	return "", false
}

// Scoped is the key in onced of a key that belongs to a scope, such as a tenant.
func Scoped(scope, key string) string {
	digest := sha256.Sum256([]byte(scope))
	return hex.EncodeToString(digest[:])[:scopeDigits] + ":" + key
}

// Fingerprint is that of a request: its parts, with a zero byte after each but the last.
func Fingerprint(body []byte, before ...string) []byte {
	digest := sha256.New()
	for _, part := range before {
		digest.Write([]byte(part))
		digest.Write([]byte{0})
	}
	digest.Write(body)
	return digest.Sum(nil)
}
