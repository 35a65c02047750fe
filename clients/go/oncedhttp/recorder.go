package oncedhttp

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"mime"
	"net"
	"net/http"
	"sync"
	"time"

	"onced.dev/go/onced"
)

var (
	errTooLarge = errors.New("the answer is larger than one that is stored may be")
	errEndless  = errors.New("an answer that streams without end, upgrades its connection or begins with 1xx cannot be stored")
)

// A decision is what the handler said of its answer.
type decision struct {
	mu          sync.Mutex
	made, store bool
	rule        onced.Rule
}

type decisionKey struct{}

func decide(ctx context.Context, say func(*decision)) {
	if d, ok := ctx.Value(decisionKey{}).(*decision); ok {
		d.mu.Lock()
		defer d.mu.Unlock()
		say(d)
	}
}

// verdict is nil if an answer of that status is to be stored; else it is what the work fails with.
func (d *decision) verdict(status int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	answered := fmt.Errorf("the handler answered %d", status)
	switch {
	case d.made && d.store:
		return nil
	case d.made:
		return onced.Fail(d.rule, answered)
	case status >= 500:
		return answered
	}
	switch status {
	case http.StatusUnauthorized, http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests:
		return onced.Fail(onced.Retry, answered) // The request was not looked at.
	}
	return nil
}

// A recorder holds the answer of a handler until it is known what becomes of it.
type recorder struct {
	to       http.ResponseWriter
	decision *decision
	// Ends the context of the handler.
	cancel context.CancelFunc
	// The largest body, in bytes.
	most int64

	header http.Header
	// The answer, once it has begun: its status is 0 before.
	status int
	sent   http.Header
	body   []byte
	// Whether the handler began with 1xx, or asked for the connection, which it did not get. Its answer is not stored then.
	endless bool
	// Why it cannot be stored, and is not held any more.
	refused error
	// Whether it goes to the caller as it comes: it is not to be stored, and larger than what is held or without end.
	passing bool
}

var (
	_ http.Flusher  = (*recorder)(nil)
	_ http.Hijacker = (*recorder)(nil)
)

func newRecorder(to http.ResponseWriter, decision *decision, cancel context.CancelFunc, most int64) *recorder {
	return &recorder{to: to, decision: decision, cancel: cancel, most: most, header: to.Header().Clone()}
}

// Header is that of the answer.
func (r *recorder) Header() http.Header { return r.header }

// WriteHeader begins the answer.
func (r *recorder) WriteHeader(status int) {
	switch {
	case r.status != 0:
		return
	case status < 100 || status > 999:
		panic(fmt.Sprintf("invalid WriteHeader code %v", status)) // As net/http does, while the handler still runs.
	case status < 200:
		r.endless = true
		return
	}
	r.status, r.sent = status, r.header.Clone()
	media, _, _ := mime.ParseMediaType(r.header.Get("Content-Type"))
	switch events := media == "text/event-stream"; {
	case !events:
	case r.decision.verdict(status) == nil:
		r.refuse(errEndless)
	default:
		r.pass()
	}
}

// refuse ends what a handler goes on with for nothing.
func (r *recorder) refuse(why error) {
	if r.refused == nil {
		r.refused, r.body = why, nil
		r.cancel()
	}
}

// pass hands out what is held, and from now on what comes.
func (r *recorder) pass() {
	r.passing = true
	r.writeTo(r.to)
	r.body = nil
}

// Write holds the bytes, or fails where they cannot be stored.
func (r *recorder) Write(data []byte) (int, error) {
	if r.status == 0 && r.refused == nil {
		r.WriteHeader(http.StatusOK)
	}
	switch {
	case r.refused != nil:
		return 0, r.refused
	case !hasBody(r.status):
		return 0, http.ErrBodyNotAllowed
	case r.passing:
		return r.to.Write(data)
	case r.endless && r.decision.verdict(r.status) == nil:
		r.refuse(errEndless)
		return 0, r.refused
	case int64(len(r.body))+int64(len(data)) <= r.most:
		r.body = append(r.body, data...)
		return len(data), nil
	case r.decision.verdict(r.status) == nil:
		r.refuse(errTooLarge)
		return 0, r.refused
	}
	r.pass()
	return r.to.Write(data)
}

// Flush begins the answer. Nothing of it leaves before it is stored, unless it is not to be.
func (r *recorder) Flush() {
	if r.status == 0 && r.refused == nil {
		r.WriteHeader(http.StatusOK)
	}
	if r.passing {
		_ = http.NewResponseController(r.to).Flush() // Where that cannot be, it leaves later.
	}
}

// Hijack fails: what happens on a connection of the handler's own cannot be stored.
func (r *recorder) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	r.endless = true
	return nil, nil, errEndless
}

// SetReadDeadline is for [http.ResponseController].
func (r *recorder) SetReadDeadline(deadline time.Time) error {
	return http.NewResponseController(r.to).SetReadDeadline(deadline)
}

// SetWriteDeadline is for [http.ResponseController].
func (r *recorder) SetWriteDeadline(deadline time.Time) error {
	return http.NewResponseController(r.to).SetWriteDeadline(deadline)
}

// finish is called when the handler has returned.
func (r *recorder) finish() {
	if r.refused != nil || r.passing {
		return
	}
	if r.status == 0 {
		r.WriteHeader(http.StatusOK)
	}
	_, typed := r.sent["Content-Type"]
	if !typed && len(r.body) > 0 && r.sent.Get("Content-Encoding") == "" {
		// As net/http does, and so that a replay says the same.
		r.sent.Set("Content-Type", http.DetectContentType(r.body))
	}
}

// writeTo hands out what is held.
func (r *recorder) writeTo(w http.ResponseWriter) {
	header := w.Header()
	clear(header)
	maps.Copy(header, r.sent)
	w.WriteHeader(r.status)
	// Who has left is told nothing.
	_, _ = w.Write(r.body)
}

// hasBody is whether an answer of that status has one.
func hasBody(status int) bool {
	return status >= 200 && status != http.StatusNoContent && status != http.StatusNotModified
}
