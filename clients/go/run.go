package onced

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	oncedv1 "onced.dev/go/onced/v1"
)

// A Result is the outcome of a key, as the work returned it.
type Result[T any] struct {
	// What the work returned, here or elsewhere.
	Value T
	Completion
}

// A Completion tells how a key came to its outcome.
type Completion struct {
	// True if the work ran in this call; false if this is the outcome of another one.
	RanHere bool
	// False if the run failed open: nothing is stored, and nobody else was kept from doing the same. See [FailOpen].
	Protected bool
	// Who completed it.
	Owner string
	// The attempt that completed.
	Attempt uint64
	// The fencing token that completed.
	FencingToken uint64
	// When it was stored, by the storing server's clock.
	CompletedAt time.Time
	// Until when, at least, it can be read.
	ExpiresAt time.Time
}

// Run runs work if the key is the caller's, and stores what it returns; else it returns what another call stored. While
// somebody else is at it, it waits.
//
// Work runs in the goroutine of the caller. Its context ends when ctx does, and when the claim is lost. Run returns when the
// work has, and what became of the key is known or was asked for long enough, whether or not ctx has ended: see the
// package's page. A panic of the work goes on once the key was given back, and so does [runtime.Goexit].
//
// The errors are of one of eight types: [*NotBegunError], [*InProgressError], [*InDoubtError], [*FailedError],
// [*ClaimLostError], [*NotStoredError], [*FinalError], [*UnreadableError]. Where the work ran and returned a value, that is
// in the result all the same.
func Run[T any](ctx context.Context, client *Client, key string, work func(context.Context, *Claim) (T, error), options ...RunOption) (Result[T], error) {
	var result Result[T]
	completion, err := client.run(ctx, key, options, func(ctx context.Context, claim *Claim) (any, error) {
		value, err := work(ctx, claim)
		if err == nil {
			result.Value, result.RanHere = value, true
		}
		return value, err
	}, &result.Value)
	if err == nil {
		result.Completion = completion
	}
	return result, err
}

// A job is work whose type is forgotten.
type job func(context.Context, *Claim) (any, error)

// run is Run; into points at the variable for a replay.
func (c *Client) run(ctx context.Context, key string, options []RunOption, work job, into any) (Completion, error) {
	r, err := c.newRun(key, options)
	if err != nil {
		return Completion{}, &NotBegunError{Err: err}
	}
	if err := c.enter(); err != nil {
		return Completion{}, &NotBegunError{Err: err}
	}
	defer c.leave()

	begun, err := r.begin(ctx)
	if errors.Is(err, errOutage) {
		return r.unprotected(ctx, work)
	}
	if err != nil {
		return Completion{}, &NotBegunError{Err: err}
	}
	switch result := begun.message.GetResult().(type) {
	case *oncedv1.BeginResponse_Claim:
		claim := newClaim(c, r.request, r.rule, result.Claim, begun.sent)
		return r.hold(ctx, claim, work)
	case *oncedv1.BeginResponse_Completed:
		return r.replay(result.Completed, into)
	case *oncedv1.BeginResponse_InProgress:
		return Completion{}, inProgress(result.InProgress)
	case *oncedv1.BeginResponse_InDoubt:
		return Completion{}, inDoubt(result.InDoubt)
	default:
		return Completion{}, &NotBegunError{Err: unknownAnswer("Begin")}
	}
}

// replay is what another call stored.
func (r *run) replay(completed *oncedv1.Completed, into any) (Completion, error) {
	completion := completionOf(completed, false)
	switch result := completed.GetOutcome().GetResult().(type) {
	case *oncedv1.Outcome_Response:
		if err := r.codec.Decode(completed.GetOutcome(), into); err != nil {
			return completion, &UnreadableError{Outcome: completed.GetOutcome(), Completion: completion, Err: err}
		}
		return completion, nil
	case *oncedv1.Outcome_Error:
		return completion, finalOf(result.Error, completion)
	default:
		return completion, &UnreadableError{Outcome: completed.GetOutcome(), Completion: completion, Err: unknownAnswer("Begin")}
	}
}

func completionOf(completed *oncedv1.Completed, ranHere bool) Completion {
	return Completion{
		RanHere: ranHere, Protected: true, Owner: completed.GetOwner(), Attempt: completed.GetAttempt(),
		FencingToken: completed.GetFencingToken(),
		CompletedAt:  timeOf(completed.GetCompletedAt()), ExpiresAt: timeOf(completed.GetExpiresAt()),
	}
}

// timeOf is a time from the wire; unset is the zero time.
func timeOf(stamp *timestamppb.Timestamp) time.Time {
	if stamp == nil {
		return time.Time{}
	}
	return stamp.AsTime()
}

// hold does the work under a claim.
func (r *run) hold(ctx context.Context, claim *Claim, work job) (Completion, error) {
	// What ends the run's context ends neither the storing of its outcome nor its claim.
	storing := context.WithoutCancel(ctx)
	stop := claim.keep()
	returned, concluded := false, false
	defer func() {
		if concluded {
			return
		}
		// A panic, or the end of the goroutine. Neither is recovered, so that both go on as they were.
		stop()
		rule, what := claim.onFailure(), "the work"
		if returned {
			rule, what = InDoubt, "the codec" // The work was done.
		}
		_ = r.fail(storing, claim, rule, fmt.Errorf("%s panicked, or ended its goroutine", what))
	}()
	value, err := r.do(ctx, claim, work)
	returned = true
	outcome, rule, err := r.conclude(claim, value, err)
	concluded = true
	if err != nil {
		stop()
		return Completion{}, r.fail(storing, claim, rule, err)
	}
	if claim.seal() == TakenOver {
		stop()
		return Completion{}, &ClaimLostError{Lost: TakenOver}
	}
	// From here on the outcome may be stored, so the claim is never given back.
	defer stop()
	return r.complete(storing, claim, outcome)
}

// do does the work in a context that ends with the claim.
func (r *run) do(ctx context.Context, claim *Claim, work job) (any, error) {
	if r.detached {
		ctx = context.WithoutCancel(ctx)
	}
	ctx, cancel := context.WithCancelCause(context.WithValue(ctx, claimKey{}, claim))
	defer cancel(nil)
	claim.onLoss(cancel)
	return work(ctx, claim)
}

// conclude is the outcome of work that has ended; or the error for which its claim is given back, and by which rule.
func (r *run) conclude(claim *Claim, value any, err error) (*oncedv1.Outcome, Rule, error) {
	var outcome *oncedv1.Outcome
	if err != nil {
		mark := markOf(err)
		switch {
		case mark == nil:
			return nil, claim.onFailure(), err
		case mark.final == nil:
			return nil, mark.rule, err
		case mark.final.GetCode() < int32(codes.Canceled) || mark.final.GetCode() > int32(codes.Unauthenticated):
			// Nobody may run again unasked what has failed for good.
			return nil, InDoubt, fmt.Errorf("a final error cannot have the code %d: %w", mark.final.GetCode(), err)
		}
		outcome = &oncedv1.Outcome{Result: &oncedv1.Outcome_Error{Error: mark.final}}
	} else if outcome, err = r.codec.Encode(value); err != nil {
		// The work ran to its end, so whatever the rule for failures is, nobody may run it again unasked.
		return nil, InDoubt, &UnstorableError{Err: err}
	}
	encoded, err := proto.Marshal(outcome)
	if err != nil {
		return nil, InDoubt, &UnstorableError{Err: err} // Such as text that is not UTF-8.
	}
	size, most := uint64(len(encoded)), claim.MaxOutcomeBytes()
	if most > 0 && size > most {
		return nil, InDoubt, &UnstorableError{Err: fmt.Errorf("the outcome takes %d bytes encoded, and the server stores at most %d", size, most)}
	}
	return outcome, 0, nil
}

// fail gives the claim back by a rule, because of an error of the work.
func (r *run) fail(ctx context.Context, claim *Claim, rule Rule, err error) error {
	if claim.WhyLost() == TakenOver {
		return &ClaimLostError{Lost: TakenOver, Err: err}
	}
	claim.lose(GivenBack)
	refused := claim.release(ctx, rule, err.Error())
	if refused != nil && isClaimLost(refused) {
		return &ClaimLostError{Lost: TakenOver, Err: err}
	}
	if refused != nil {
		r.client.log.WarnContext(ctx, "onced: a claim was not given back; it lapses by itself", "rule", rule, "error", refused)
	}
	return &FailedError{
		Err: unmarked(err), Rule: rule, Released: refused == nil, ReleaseErr: refused,
		Attempt: claim.Attempt(), FencingToken: claim.FencingToken(),
	}
}

// complete stores the outcome.
func (r *run) complete(ctx context.Context, claim *Claim, outcome *oncedv1.Outcome) (Completion, error) {
	request := &oncedv1.CompleteRequest{
		Namespace: claim.namespace, Key: claim.key, FencingToken: claim.FencingToken(), Outcome: outcome,
	}
	// Work that is done is worth trying for as long as the lock would have lived.
	patience := patience{total: max(r.client.timeout, claim.ttl), attempt: attemptTime, grace: sessionGrace}
	stored, err := call(ctx, r.client.transport, holding, patience, request, oncedv1.IdempotencyServiceClient.Complete)
	if err == nil && stored.message.GetCompleted() == nil {
		err = unknownAnswer("Complete")
	}
	switch {
	case err == nil:
	case isClaimLost(err):
		return Completion{}, &ClaimLostError{Lost: TakenOver}
	default:
		return Completion{}, &NotStoredError{
			Outcome: outcome, Err: err, Attempt: claim.Attempt(), FencingToken: claim.FencingToken(),
		}
	}
	completion := completionOf(stored.message.GetCompleted(), true)
	if final := outcome.GetError(); final != nil {
		return completion, finalOf(final, completion)
	}
	return completion, nil
}

// unprotected does the work without a claim, since no server answered.
func (r *run) unprotected(ctx context.Context, work job) (Completion, error) {
	r.client.unprotected.Add(1)
	r.client.log.WarnContext(ctx, "onced: no server answered, and the work runs unprotected", "after", r.failOpen)
	claim := newClaim(r.client, r.request, r.rule, nil, 0)
	completion := Completion{RanHere: true, Owner: r.request.GetOwner()}
	if _, err := r.do(ctx, claim, work); err != nil {
		if mark := markOf(err); mark != nil && mark.final != nil {
			return completion, finalOf(mark.final, completion)
		}
		return completion, &FailedError{Err: unmarked(err), Rule: claim.onFailure()}
	}
	return completion, nil
}
