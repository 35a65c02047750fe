package onced

import (
	"log/slog"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	oncedv1 "onced.dev/go/onced/v1"
)

// An Option sets up a [Client].
type Option func(*settings)

type settings struct {
	access  access
	timeout time.Duration
	owner   string
	log     *slog.Logger
	clock   clock

	withoutSessions bool
}

// WithTimeout says how long a call is tried, beyond the wait it asks for. 30 s without it.
func WithTimeout(timeout time.Duration) Option {
	return func(s *settings) { s.timeout = timeout }
}

// WithOwner says who claims: shown to duplicates and operators, at most 256 bytes. User, host and process id without it,
// such as "deploy@web-3:4711".
func WithOwner(owner string) Option {
	return func(s *settings) { s.owner = owner }
}

// WithCAFile names the CA that signed the certificates of the servers, in PEM. Those that the system trusts without it.
func WithCAFile(file string) Option {
	return func(s *settings) { s.access.caFile = &file }
}

// WithCertificate names the certificate to show to servers, and its key, in PEM. They are read by [New], and not again.
func WithCertificate(certFile, keyFile string) Option {
	return func(s *settings) { s.access.certFile, s.access.keyFile = &certFile, &keyFile }
}

// WithToken is the token that says who calls.
func WithToken(token string) Option {
	return func(s *settings) { s.access.token = &token }
}

// WithTokenFile names the file of the token that says who calls. It is read again when it is 5 s old, and when its token
// is refused.
func WithTokenFile(file string) Option {
	return func(s *settings) { s.access.tokenFile = &file }
}

// WithTokenInPlaintext sends the token also where it goes over a network without TLS, for all to read.
func WithTokenInPlaintext() Option {
	return func(s *settings) { s.access.tokenInPlaintext = true }
}

// WithoutSessions makes each call by itself, however many there are. Without it, many at once share a stream, which spares this
// process and the servers work.
func WithoutSessions() Option {
	return func(s *settings) { s.withoutSessions = true }
}

// WithLogger says where the client logs what no error tells, such as a claim that could not be given back.
// [slog.Default] without it.
func WithLogger(log *slog.Logger) Option {
	return func(s *settings) { s.log = log }
}

// A Rule says what becomes of a key whose work failed.
type Rule int

const (
	// Retry frees the key: the work had no effect, or is safe to do again.
	Retry Rule = iota
	// InDoubt keeps everybody from running the key until an operator has resolved it.
	InDoubt
)

// String is "retry" or "in_doubt".
func (r Rule) String() string {
	if r == InDoubt {
		return "in_doubt"
	}
	return "retry"
}

func (r Rule) disposition() oncedv1.Disposition {
	if r == InDoubt {
		return oncedv1.Disposition_DISPOSITION_IN_DOUBT
	}
	return oncedv1.Disposition_DISPOSITION_RETRY
}

// A Lapse says what becomes of a claim whose holder is gone.
type Lapse int

const (
	// TakeOver lets the next caller run the key.
	TakeOver Lapse = iota
	// Hold puts the key in doubt: nobody runs it until an operator has resolved it.
	Hold
)

// A RunOption sets up one [Run].
type RunOption func(*runSettings)

type runSettings struct {
	request *oncedv1.BeginRequest
	wait    time.Duration
	forever bool
	rule    Rule
	// How long without an answer until the work runs without a claim; 0 for never.
	failOpen time.Duration
	codec    Codec
	detached bool
}

// Namespace is that of the key. "default" without it.
func Namespace(namespace string) RunOption {
	return func(s *runSettings) { s.request.Namespace = namespace }
}

// Fingerprint is a digest of the request, at most 64 bytes, so that the key used for another one is an error. See
// [FingerprintJSON] and its like.
func Fingerprint(digest []byte) RunOption {
	return func(s *runSettings) { s.request.Fingerprint = digest }
}

// LockTTL is how soon others take over from a crash, 2 s to 1 h. The namespace's without it, 30 s as a rule.
func LockTTL(ttl time.Duration) RunOption {
	return func(s *runSettings) { s.request.LockTtl = durationpb.New(ttl) }
}

// Retention is how long the outcome is kept, at least, 1 min to 31 d. The namespace's without it, 24 h as a rule.
func Retention(retention time.Duration) RunOption {
	return func(s *runSettings) { s.request.Retention = durationpb.New(retention) }
}

// OnLapse says what becomes of the key if this process is gone while the work runs. What the namespace says without it: to
// take over, as a rule.
func OnLapse(lapse Lapse) RunOption {
	return func(s *runSettings) {
		s.request.OnLapse = oncedv1.OnLapse_ON_LAPSE_TAKE_OVER
		if lapse == Hold {
			s.request.OnLapse = oncedv1.OnLapse_ON_LAPSE_HOLD
		}
	}
}

// OnFailure says what becomes of the key when the work fails without saying, panics, or ends its goroutine. [Retry]
// without it. See [Claim.SetOnFailure] for work that comes to know better on the way.
func OnFailure(rule Rule) RunOption {
	return func(s *runSettings) { s.rule = rule }
}

// Owner says who asks; the client's owner without it.
func Owner(owner string) RunOption {
	return func(s *runSettings) { s.request.Owner = owner }
}

// Wait is how long to wait while somebody else is at it; 0 asks once. 60 s without it.
func Wait(wait time.Duration) RunOption {
	return func(s *runSettings) { s.wait, s.forever = max(wait, 0), false }
}

// WaitForever waits until the key has an outcome or is free, however long that takes, or until the context ends.
func WaitForever() RunOption {
	return func(s *runSettings) { s.forever = true }
}

// FailOpen runs the work without a claim when no server has answered for so long. Two callers may then do it twice: say so
// only of work for which that is better than not at all.
//
// It never comes to that once a server has answered with anything but UNAVAILABLE, nor for what is set up wrong.
// [Claim.Protected] and [Completion.Protected] tell, and [Client.Unprotected] counts. A time of 0 or less is never.
func FailOpen(after time.Duration) RunOption {
	return func(s *runSettings) { s.failOpen = after }
}

// Using says how values become outcomes, and outcomes values. [JSON] without it.
func Using(codec Codec) RunOption {
	return func(s *runSettings) { s.codec = codec }
}

// Detached keeps the end of Run's context from the context of the work, which then ends only when the claim is lost. The
// context still ends the wait for somebody else's work. For servers, whose callers may hang up: what they asked for is
// done all the same.
func Detached() RunOption {
	return func(s *runSettings) { s.detached = true }
}
