package oncedhttp

import (
	"errors"
	"fmt"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
	"unicode/utf8"

	oncedv1 "onced.dev/go/onced/v1"
)

const (
	statusKey    = "http.status"
	headerPrefix = "http.header."
)

// Header values are sent so by net/http, and are stored as they are sent.
var oneLine = strings.NewReplacer("\n", " ", "\r", " ")

// outcome is the answer as it is stored.
func (r *recorder) outcome(headers []string) (*oncedv1.Outcome, error) {
	metadata := map[string]string{statusKey: strconv.Itoa(r.status)}
	for _, name := range headers {
		values, there := r.sent[name]
		if !there || name == "Content-Type" {
			continue
		}
		lines := make([]string, len(values))
		for i, value := range values {
			lines[i] = textproto.TrimString(oneLine.Replace(value))
		}
		metadata[headerPrefix+strings.ToLower(name)] = strings.Join(lines, "\n")
	}
	outcome := &oncedv1.Outcome{
		Result:      &oncedv1.Outcome_Response{Response: r.body},
		ContentType: textproto.TrimString(oneLine.Replace(r.sent.Get("Content-Type"))),
		Metadata:    metadata,
	}
	if !utf8.ValidString(outcome.GetContentType()) {
		return nil, errors.New("the header Content-Type of the answer is not UTF-8")
	}
	for key, value := range metadata {
		if !utf8.ValidString(value) {
			return nil, fmt.Errorf("the header %s of the answer is not UTF-8", strings.TrimPrefix(key, headerPrefix))
		}
	}
	return outcome, nil
}

// replay hands out an answer that was stored. It is false if the outcome is no answer over HTTP, and then does nothing.
func replay(w http.ResponseWriter, outcome *oncedv1.Outcome) bool {
	status, err := strconv.Atoi(outcome.GetMetadata()[statusKey])
	if err != nil || status < 200 || status > 999 {
		return false
	}
	header := w.Header()
	// An answer without a type was sent without one: net/http guesses unless it is told not to.
	header["Content-Type"] = nil
	if outcome.GetContentType() != "" {
		header.Set("Content-Type", outcome.GetContentType())
	}
	for key, value := range outcome.GetMetadata() {
		if name, ok := strings.CutPrefix(key, headerPrefix); ok {
			header[http.CanonicalHeaderKey(name)] = strings.Split(value, "\n")
		}
	}
	header.Set("Idempotent-Replayed", "true")
	w.WriteHeader(status)
	if hasBody(status) {
		// Who has left is told nothing.
		_, _ = w.Write(outcome.GetResponse())
	}
	return true
}
