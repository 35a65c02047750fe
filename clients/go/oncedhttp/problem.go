package oncedhttp

import (
	"encoding/json"
	"net/http"

	"onced.dev/go/onced/internal/idempotency"
)

// problem is an answer by RFC 9457.
type problem struct {
	Title  string           `json:"title"`
	Status int              `json:"status"`
	Detail string           `json:"detail"`
	Code   idempotency.Code `json:"code"`
}

func statusOf(code idempotency.Code) int {
	switch code {
	case idempotency.KeyMissing, idempotency.KeyInvalid, idempotency.ScopeMissing:
		return http.StatusBadRequest
	case idempotency.InProgress, idempotency.ClaimLost, idempotency.InDoubt:
		return http.StatusConflict
	case idempotency.TooLarge:
		return http.StatusRequestEntityTooLarge
	case idempotency.FingerprintMismatch:
		return http.StatusUnprocessableEntity
	case idempotency.Unavailable:
		return http.StatusServiceUnavailable
	default:
		return http.StatusInternalServerError
	}
}

// refuse answers with a problem.
func refuse(w http.ResponseWriter, code idempotency.Code) {
	status := statusOf(code)
	w.Header().Set("Content-Type", "application/problem+json")
	switch code {
	case idempotency.InProgress, idempotency.ClaimLost, idempotency.Unavailable:
		w.Header().Set("Retry-After", "1")
	}
	w.WriteHeader(status)
	// Who has left is told nothing.
	_ = json.NewEncoder(w).Encode(problem{Title: http.StatusText(status), Status: status, Detail: code.Why(), Code: code})
}
