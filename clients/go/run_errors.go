package onced

import (
	"errors"
	"fmt"
	"time"

	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	oncedv1 "onced.dev/go/onced/v1"
)

// What [Run] fails with, for [errors.Is]. Each has a type that tells more, for [errors.As].
var (
	// ErrNotBegun: the key could not be claimed; the work did not run. [*NotBegunError].
	ErrNotBegun = errors.New("onced: the key could not be claimed")
	// ErrInProgress: somebody else was still at it when the wait was over. [*InProgressError].
	ErrInProgress = errors.New("onced: somebody else is still at it")
	// ErrInDoubt: what an earlier claim did is unknown, and an operator must resolve it. [*InDoubtError].
	ErrInDoubt = errors.New("onced: the key is in doubt")
	// ErrFailed: the work failed, and the claim was given back. [*FailedError].
	ErrFailed = errors.New("onced: the work failed")
	// ErrClaimLost: the claim was lost while the work ran, so its outcome does not count. [*ClaimLostError].
	ErrClaimLost = errors.New("onced: the claim was lost")
	// ErrNotStored: the work is done, and whether its outcome is stored is unknown. [*NotStoredError].
	ErrNotStored = errors.New("onced: the outcome is not known to be stored")
	// ErrFinal: the work failed for good, here or elsewhere. [*FinalError].
	ErrFinal = errors.New("onced: the work failed for good")
	// ErrUnreadable: there is an outcome, and it cannot be read as what the work returns. [*UnreadableError].
	ErrUnreadable = errors.New("onced: the outcome cannot be read")
)

// A NotBegunError says that the key could not be claimed. The work did not run in this call.
type NotBegunError struct {
	// A [*Refusal], an [*UnavailableError], a [*SetUpError], [ErrClosed], or why the context ended.
	Err error
}

// Error says why.
func (e *NotBegunError) Error() string { return fmt.Sprintf("%v: %v", ErrNotBegun, e.Err) }

// Is makes it an [ErrNotBegun].
func (e *NotBegunError) Is(target error) bool { return target == ErrNotBegun }

// Unwrap is why.
func (e *NotBegunError) Unwrap() error { return e.Err }

// An InProgressError says that somebody else was still at it when the wait was over.
type InProgressError struct {
	// The owner that the claim named.
	Owner string
	// The attempt under way.
	Attempt uint64
	// When the claim was made, by the claiming server's clock.
	BeganAt time.Time
	// When the lock will lapse unless it is renewed: a hint.
	LockExpiresIn time.Duration
}

func inProgress(held *oncedv1.InProgress) error {
	return &InProgressError{
		Owner: held.GetOwner(), Attempt: held.GetAttempt(), BeganAt: timeOf(held.GetBeganAt()),
		LockExpiresIn: held.GetLockExpiresIn().AsDuration(),
	}
}

// Error names the owner.
func (e *InProgressError) Error() string {
	return fmt.Sprintf("onced: %s is still at it (attempt %d)", named(e.Owner), e.Attempt)
}

// Is makes it an [ErrInProgress].
func (e *InProgressError) Is(target error) bool { return target == ErrInProgress }

// An InDoubtError says that what an earlier claim did is unknown, and that nobody may run the key until an operator has
// resolved it: with "onced resolve", naming the token.
type InDoubtError struct {
	// The owner that the claim named.
	Owner string
	// The attempt whose effects are unknown.
	Attempt uint64
	// The token to resolve.
	FencingToken uint64
	// Since when, as far as the server knows.
	Since time.Time
	// Why: what the holder said, or that its lock lapsed.
	Reason string
}

func inDoubt(held *oncedv1.InDoubt) error {
	return &InDoubtError{
		Owner: held.GetOwner(), Attempt: held.GetAttempt(), FencingToken: held.GetFencingToken(),
		Since: timeOf(held.GetSince()), Reason: held.GetReason(),
	}
}

// Error names the owner and the token to resolve.
func (e *InDoubtError) Error() string {
	return fmt.Sprintf("onced: what %s did is unknown (%s); an operator must resolve token %d", named(e.Owner), e.Reason, e.FencingToken)
}

// Is makes it an [ErrInDoubt].
func (e *InDoubtError) Is(target error) bool { return target == ErrInDoubt }

// A FailedError says that the work failed, and that its claim was given back.
type FailedError struct {
	// The work's error.
	Err error
	// What was asked to become of the key.
	Rule Rule
	// Whether that was confirmed. If not, the claim lapses by itself after its lock TTL.
	Released bool
	// Why it was not confirmed.
	ReleaseErr error
	// The attempt that failed, and its token. 0 if the run failed open.
	Attempt, FencingToken uint64
}

// Error is the work's, and what became of the key if that is unknown.
func (e *FailedError) Error() string {
	if e.ReleaseErr != nil {
		return fmt.Sprintf("%v: %v (and its claim was not given back, but lapses by itself: %v)", ErrFailed, e.Err, e.ReleaseErr)
	}
	return fmt.Sprintf("%v: %v", ErrFailed, e.Err)
}

// Is makes it an [ErrFailed].
func (e *FailedError) Is(target error) bool { return target == ErrFailed }

// Unwrap is the work's error.
func (e *FailedError) Unwrap() error { return e.Err }

// A ClaimLostError says that the claim was lost while the work ran, so that its outcome does not count: somebody else may
// have run it. It is also the cause of the end of the work's context.
type ClaimLostError struct {
	// How it was lost.
	Lost Lost
	// The error of the work, if it failed.
	Err error
}

// Error says how.
func (e *ClaimLostError) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("onced: %v while the work ran, which failed: %v", e.Lost, e.Err)
	}
	return fmt.Sprintf("onced: %v while the work ran", e.Lost)
}

// Is makes it an [ErrClaimLost].
func (e *ClaimLostError) Is(target error) bool { return target == ErrClaimLost }

// Unwrap is the error of the work.
func (e *ClaimLostError) Unwrap() error { return e.Err }

// A NotStoredError says that the work is done, but that its outcome is not known to be stored, or was refused. The claim is
// not given back, since the outcome may be there; it lapses by itself if it is not.
type NotStoredError struct {
	// What was to be stored.
	Outcome *oncedv1.Outcome
	// A [*Refusal] or an [*UnavailableError].
	Err error
	// The attempt that did the work, and its token.
	Attempt, FencingToken uint64
}

// Error says why.
func (e *NotStoredError) Error() string {
	return fmt.Sprintf("onced: the work is done, but its outcome is not known to be stored: %v", e.Err)
}

// Is makes it an [ErrNotStored].
func (e *NotStoredError) Is(target error) bool { return target == ErrNotStored }

// Unwrap is why.
func (e *NotStoredError) Unwrap() error { return e.Err }

// A FinalError is an outcome: the work failed for good, and every duplicate gets this.
type FinalError struct {
	// The code.
	Code codes.Code
	// The text.
	Message string
	// What tells more.
	Status *status.Status
	// How the key came to it.
	Completion Completion
}

func finalOf(final *statuspb.Status, completion Completion) error {
	st := status.FromProto(final)
	return &FinalError{Code: st.Code(), Message: st.Message(), Status: st, Completion: completion}
}

// Error is the code and the text.
func (e *FinalError) Error() string {
	return fmt.Sprintf("%v: %v: %s", ErrFinal, e.Code, e.Message)
}

// Is makes it an [ErrFinal].
func (e *FinalError) Is(target error) bool { return target == ErrFinal }

// GRPCStatus is what a gRPC server that hands the error on answers.
func (e *FinalError) GRPCStatus() *status.Status { return e.Status }

// An UnreadableError says that the key has an outcome that cannot be read as what the work returns. Nothing ran.
type UnreadableError struct {
	// What is stored.
	Outcome *oncedv1.Outcome
	// How it came to be.
	Completion Completion
	// Why it cannot be read.
	Err error
}

// Error says why.
func (e *UnreadableError) Error() string { return fmt.Sprintf("%v: %v", ErrUnreadable, e.Err) }

// Is makes it an [ErrUnreadable].
func (e *UnreadableError) Is(target error) bool { return target == ErrUnreadable }

// Unwrap is why.
func (e *UnreadableError) Unwrap() error { return e.Err }

// An UnstorableError is why the work failed that returned a value: it cannot be encoded, or takes more than the server
// stores. The key is in doubt then, since the work was done.
type UnstorableError struct {
	Err error
}

// Error says why.
func (e *UnstorableError) Error() string {
	return fmt.Sprintf("what the work returned cannot be stored: %v", e.Err)
}

// Unwrap is why.
func (e *UnstorableError) Unwrap() error { return e.Err }

func named(owner string) string {
	if owner == "" {
		return "another owner"
	}
	return owner
}
