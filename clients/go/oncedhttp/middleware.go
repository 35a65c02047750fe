// Package oncedhttp is middleware for net/http that carries out a request once for its Idempotency-Key header, however often it
// is repeated, and gives every repetition the same answer. What becomes of which answer stands in the contract of the client
// libraries, clients/README.md of the repository.
//
//	mux.Handle("POST /orders", oncedhttp.Middleware(client, oncedhttp.With(onced.Namespace("shop")))(orders))
//
// The handler runs to its end although its caller hangs up, and its answer is stored. Its context ends when the claim is lost,
// and not with the connection; [onced.ClaimFrom] has the claim. [Store] and [Release] say, in a handler, what becomes of its
// answer.
//
// Requests and answers are held in memory, each within its limit. An answer leaves only when it is stored.
package oncedhttp

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"net/http"
	"strings"

	"onced.dev/go/onced"
	"onced.dev/go/onced/internal/idempotency"
	oncedv1 "onced.dev/go/onced/v1"
)

// The header of the key.
const keyHeader = "Idempotency-Key"

// The largest body that is held where the server does not say what it stores.
const unknownMostBytes = 1 << 20

// Middleware makes each request that a handler gets run once for its key.
func Middleware(client *onced.Client, options ...Option) func(http.Handler) http.Handler {
	s := defaults()
	for _, option := range options {
		option(&s)
	}
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !s.methods[r.Method] || (s.optional && len(r.Header.Values(keyHeader)) == 0) {
				next.ServeHTTP(w, r)
				return
			}
			key, code := s.key(r)
			if code != "" {
				refuse(w, code)
				return
			}
			body, err := s.body(w, r)
			var tooLarge *http.MaxBytesError
			switch {
			case errors.As(err, &tooLarge):
				refuse(w, idempotency.TooLarge)
				return
			case err != nil:
				http.Error(w, "The request did not arrive whole.", http.StatusBadRequest)
				return
			}
			e := exchange{settings: &s, client: client, next: next, w: w, r: r, body: body}
			e.run(key)
		})
	}
}

// key is that of the request in onced; or why there is none.
func (s *settings) key(r *http.Request) (string, idempotency.Code) {
	headers := r.Header.Values(keyHeader)
	if len(headers) == 0 {
		return "", idempotency.KeyMissing
	}
	key, ok := idempotency.ParseKey(headers[0], s.scope != nil)
	if !ok || len(headers) > 1 {
		return "", idempotency.KeyInvalid
	}
	if s.scope == nil {
		return key, ""
	}
	scope := s.scope(r)
	if scope == "" {
		return "", idempotency.ScopeMissing
	}
	return idempotency.Scoped(scope, key), ""
}

// body reads the request whole, within its limit.
func (s *settings) body(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if r.Body == nil {
		return nil, nil
	}
	if r.ContentLength > s.maxRequestBytes {
		return nil, &http.MaxBytesError{Limit: s.maxRequestBytes}
	}
	return io.ReadAll(http.MaxBytesReader(w, r.Body, s.maxRequestBytes))
}

// target is the path and query as they were sent.
func target(r *http.Request) string {
	if strings.HasPrefix(r.RequestURI, "/") {
		return r.RequestURI
	}
	return r.URL.RequestURI() // A request that no server read, or that names a host as well.
}

// An exchange is one request and its answer.
type exchange struct {
	*settings
	client *onced.Client
	next   http.Handler
	w      http.ResponseWriter
	r      *http.Request
	body   []byte
	// What the handler answered, if it ran here under a claim.
	recorder *recorder
	// Whether it ran here without one, and answered by itself.
	answered bool
}

func (e *exchange) run(key string) {
	options := append(e.settings.run[:len(e.settings.run):len(e.settings.run)],
		onced.Using(onced.Raw), onced.Detached(),
		onced.Fingerprint(idempotency.Fingerprint(e.body, "http", e.r.Method, target(e.r))))
	done, err := onced.Run(e.r.Context(), e.client, key, e.handle, options...)
	var unstorable *onced.UnstorableError
	switch {
	case e.answered, e.recorder != nil && e.recorder.passing:
	case errors.Is(err, onced.ErrClaimLost):
		refuse(e.w, idempotency.ClaimLost)
	case e.recorder != nil && (e.recorder.refused != nil || errors.As(err, &unstorable)):
		e.log.WarnContext(e.r.Context(), "oncedhttp: an answer could not be stored", "error", err)
		refuse(e.w, idempotency.NotStorable)
	case e.recorder != nil:
		if errors.Is(err, onced.ErrNotStored) {
			e.log.WarnContext(e.r.Context(), "oncedhttp: an answer is handed out that is not known to be stored", "error", err)
		}
		e.recorder.writeTo(e.w)
	case err == nil && replay(e.w, done.Value):
	default:
		e.refuse(err)
	}
}

func (e *exchange) refuse(err error) {
	code := idempotency.Refused
	if err != nil {
		code = idempotency.CodeOf(err)
	}
	switch {
	case code == idempotency.Unavailable && e.r.Context().Err() != nil: // The caller has left.
	case code == idempotency.Refused || code == idempotency.Unavailable || code == idempotency.InDoubt:
		if err == nil {
			err = errors.New("the outcome of the key is no answer over HTTP: is it used for other work as well?")
		}
		e.log.WarnContext(e.r.Context(), "oncedhttp: a request was refused", "code", code, "error", err)
	}
	refuse(e.w, code)
}

// handle is the work: the handler's answer, as it is stored.
func (e *exchange) handle(ctx context.Context, claim *onced.Claim) (*oncedv1.Outcome, error) {
	decision := &decision{}
	ctx, cancel := context.WithCancel(context.WithValue(ctx, decisionKey{}, decision))
	defer cancel()
	request := e.r.WithContext(ctx)
	request.Body, request.ContentLength = io.NopCloser(bytes.NewReader(e.body)), int64(len(e.body))
	request.TransferEncoding = nil
	defer func() {
		if request.MultipartForm != nil {
			_ = request.MultipartForm.RemoveAll() // The server does so for the request that it knows.
		}
	}()
	if !claim.Protected() {
		e.answered = true
		e.next.ServeHTTP(e.w, request)
		return nil, nil
	}
	recorder := newRecorder(e.w, decision, cancel, e.most(claim))
	e.next.ServeHTTP(recorder, request)
	recorder.finish()
	e.recorder = recorder
	if recorder.refused != nil {
		return nil, onced.Fail(onced.InDoubt, recorder.refused) // Whatever was said since: it is gone.
	}
	if err := decision.verdict(recorder.status); err != nil {
		return nil, err
	}
	switch {
	case recorder.passing:
		return nil, onced.Fail(onced.InDoubt, errTooLarge) // It was to be stored when it had begun to pass.
	case recorder.endless:
		recorder.refused = errEndless
	default:
		var outcome *oncedv1.Outcome
		if outcome, recorder.refused = recorder.outcome(e.headers); recorder.refused == nil {
			return outcome, nil
		}
	}
	return nil, onced.Fail(onced.InDoubt, recorder.refused)
}

// most is how large the body of an answer may be.
func (e *exchange) most(claim *onced.Claim) int64 {
	most := int64(min(claim.MaxOutcomeBytes(), math.MaxInt64))
	if most == 0 {
		most = unknownMostBytes
	}
	if e.maxResponseBytes > 0 {
		most = min(most, e.maxResponseBytes)
	}
	return most
}
