package oncedhttp

import (
	"context"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"onced.dev/go/onced"
)

const (
	defaultMaxRequestBytes = 1 << 20
	defaultWait            = 10 * time.Second
)

// An Option sets up [Middleware].
type Option func(*settings)

type settings struct {
	methods          map[string]bool
	optional         bool
	scope            func(*http.Request) string
	headers          []string
	maxRequestBytes  int64
	maxResponseBytes int64
	run              []onced.RunOption
	log              *slog.Logger
}

func defaults() settings {
	return settings{
		methods:         map[string]bool{http.MethodPost: true, http.MethodPatch: true},
		maxRequestBytes: defaultMaxRequestBytes,
		run:             []onced.RunOption{onced.Wait(defaultWait)},
		log:             slog.Default(),
		headers: []string{
			"Cache-Control", "Content-Disposition", "Content-Encoding", "Content-Language", "Etag", "Last-Modified", "Link",
			"Location", "Retry-After", "Vary",
		},
	}
}

// Methods are those whose requests run once; all others pass. POST and PATCH without it.
func Methods(methods ...string) Option {
	return func(s *settings) {
		s.methods = map[string]bool{}
		for _, method := range methods {
			s.methods[strings.ToUpper(method)] = true
		}
	}
}

// Optional lets requests without a key pass. They are refused without it.
func Optional() Option {
	return func(s *settings) { s.optional = true }
}

// Scope says whose key a request has, so that two tenants may use the same one. It must be the same when the request is
// repeated: an account or tenant, never the Authorization header, whose tokens change between retries. A request for
// which it is empty is refused.
func Scope(of func(*http.Request) string) Option {
	return func(s *settings) { s.scope = of }
}

// ScopeHeader is [Scope] by the header of that name. Let only those set it who are trusted to, such as a gateway. A request
// with more than one of it, or with one that is not printable ASCII, is refused like one without.
func ScopeHeader(name string) Option {
	return Scope(func(r *http.Request) string {
		values := r.Header.Values(name)
		if len(values) != 1 || strings.ContainsFunc(values[0], func(char rune) bool { return char < ' ' || char > '~' }) {
			return ""
		}
		return values[0]
	})
}

// With says how each request is run: [onced.Namespace], [onced.Wait] (10 s without it; 0 answers at once),
// [onced.LockTTL], [onced.Retention], [onced.OnLapse], [onced.FailOpen]; and by [onced.OnFailure] what becomes of the key of
// an answer of 5xx, or when the handler panics.
func With(options ...onced.RunOption) Option {
	return func(s *settings) { s.run = append(s.run, options...) }
}

// StoreHeaders names headers of answers that are stored besides Cache-Control, Content-Disposition, Content-Encoding,
// Content-Language, Content-Type, ETag, Last-Modified, Link, Location, Retry-After and Vary.
func StoreHeaders(names ...string) Option {
	return func(s *settings) {
		for _, name := range names {
			s.headers = append(s.headers, http.CanonicalHeaderKey(name))
		}
	}
}

// MaxRequestBytes is how large the body of a request may be, since it is held in memory. 1 MiB without it.
func MaxRequestBytes(most int64) Option {
	return func(s *settings) { s.maxRequestBytes = most }
}

// MaxResponseBytes is how large the body of an answer may be. What the claim allows without it, 1 MiB as a rule.
func MaxResponseBytes(most int64) Option {
	return func(s *settings) { s.maxResponseBytes = most }
}

// Logger is where the middleware logs what no caller is told. [slog.Default] without it.
func Logger(log *slog.Logger) Option {
	return func(s *settings) { s.log = log }
}

// Store says, in a handler, that its answer is to be stored whatever its status.
func Store(ctx context.Context) {
	decide(ctx, func(d *decision) { d.made, d.store = true, true })
}

// Release says, in a handler, that its answer is not to be stored, whatever its status, and what becomes of the key.
func Release(ctx context.Context, rule onced.Rule) {
	decide(ctx, func(d *decision) { d.made, d.store, d.rule = true, false, rule })
	if claim := onced.ClaimFrom(ctx); claim != nil {
		claim.SetOnFailure(rule) // A handler that panics has said it all the same.
	}
}
