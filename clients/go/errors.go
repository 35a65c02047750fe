package onced

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// The domain of every ErrorInfo that onced sends.
const errorDomain = "onced.dev"

// What gRPC says of a server that cannot be reached.
const notDialled = "while dialing"

// What the system says of a host whose name nobody knows.
const unknownHost = "no such host"

// ErrClosed is why nothing begins any more: the client was closed.
var ErrClosed = errors.New("the client is closed")

// A Refusal is an error as a server sent it, or as the connection met it.
type Refusal struct {
	// The status code.
	Code codes.Code
	// The reason, such as "FINGERPRINT_MISMATCH": a name of [oncedv1.ErrorReason] without its prefix. Empty if it is not
	// from onced, such as a refused connection.
	Reason string
	// The text.
	Message string
	// The values that belong to the reason.
	Metadata map[string]string
}

func refusalOf(failed *status.Status) *Refusal {
	refusal := &Refusal{Code: failed.Code(), Message: failed.Message()}
	if refusal.Message == "" {
		refusal.Message = failed.Code().String()
	}
	for _, detail := range failed.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok && info.GetDomain() == errorDomain {
			refusal.Reason, refusal.Metadata = info.GetReason(), info.GetMetadata()
		}
	}
	return refusal
}

// Error is the message, and the reason if there is one.
func (r *Refusal) Error() string {
	if r.Reason == "" {
		return r.Message
	}
	return r.Message + " (" + r.Reason + ")"
}

// isClaimLost is true if the claim that the call named is no longer the caller's: taken over, settled, or deleted.
func (r *Refusal) isClaimLost() bool {
	return r.Reason == "CLAIM_LOST" || r.Reason == "RECORD_NOT_FOUND"
}

// mayHaveBeenDone is true unless the attempt is known to have changed nothing.
func (r *Refusal) mayHaveBeenDone() bool {
	if r.Reason != "" {
		return r.Metadata["write"] == "unknown"
	}
	return !r.isNotConnected() // Nothing was sent then.
}

// isNotConnected is true if no connection was made.
func (r *Refusal) isNotConnected() bool {
	for _, text := range []string{notDialled, "handshake failed", "error reading server preface"} {
		if strings.Contains(r.Message, text) {
			return true
		}
	}
	return false
}

// isUnknownHost is true if nobody knows the name of the host.
func (r *Refusal) isUnknownHost() bool {
	return strings.Contains(r.Message, notDialled) && strings.Contains(r.Message, unknownHost)
}

// An UnavailableError says that no server could do it before the caller's time was up. What became of the call is
// unknown, and the same call may be sent again.
type UnavailableError struct {
	// The servers that were asked.
	Servers []string
	// How long the call was tried for: less than the caller's time, where the next attempt would have come after it.
	Tried time.Duration
	// What the last attempt ended with. It has a reason if a server answered at all.
	Last *Refusal

	told, setUp bool
}

// Error tells whether a server was there and could not do it, or none was.
func (e *UnavailableError) Error() string {
	servers := strings.Join(e.Servers, ", ")
	tried := e.Tried.Round(time.Millisecond)
	if e.Last.Reason != "" {
		return fmt.Sprintf("%s answered, but could not do it in %v; last: %v", servers, tried, e.Last)
	}
	return fmt.Sprintf("no answer from %s in %v; last: %v", servers, tried, e.Last)
}

// Unwrap is what the last attempt ended with.
func (e *UnavailableError) Unwrap() error { return e.Last }

// A SetUpError is a mistake in how the client is set up: its addresses, its files for TLS, its credentials; or in how its
// servers are, as seen from here. Its message says what to do. Nothing was done.
type SetUpError struct {
	Message string
}

// Error is the message.
func (e *SetUpError) Error() string { return e.Message }

func setUpErrorf(format string, values ...any) error {
	return &SetUpError{Message: fmt.Sprintf(format, values...)}
}

// givenUp is why ctx ended: it is both the context's error and its cause.
func givenUp(ctx context.Context) error {
	cause := context.Cause(ctx)
	if err := ctx.Err(); !errors.Is(cause, err) && !errors.Is(cause, ErrClosed) {
		return fmt.Errorf("%w: %w", err, cause)
	}
	return cause
}

// reasonOf is the reason that a server gave, if one answered.
func reasonOf(err error) string {
	var refusal *Refusal
	if errors.As(err, &refusal) {
		return refusal.Reason
	}
	return ""
}

// isClaimLost is true if a server answered that the claim is no longer the caller's.
func isClaimLost(err error) bool {
	var refusal *Refusal
	return errors.As(err, &refusal) && refusal.isClaimLost()
}

// unknownAnswer is what an answer that holds nothing known here comes to.
func unknownAnswer(call string) error {
	return fmt.Errorf("the server's answer to %s holds nothing known here; is the server newer than this client?", call)
}
