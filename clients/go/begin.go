package onced

import (
	"context"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	oncedv1 "onced.dev/go/onced/v1"
)

const (
	defaultNamespace = "default"
	defaultWait      = 60 * time.Second
	// The first wait is short, so that a long one is made of several answers; each further one doubles, up to the last.
	firstPoll, lastPoll = time.Second, 16 * time.Second
	// The longest pause after an answer that came sooner than the wait it was asked for.
	earlyAnswerPause = 500 * time.Millisecond
	// How long one attempt may take at least while failing open may come: less would find no server there.
	shortestShare = 100 * time.Millisecond
)

// A run is one call of Run.
type run struct {
	client *Client
	runSettings
}

func (c *Client) newRun(key string, options []RunOption) (*run, error) {
	r := &run{client: c, runSettings: runSettings{wait: defaultWait, codec: JSON, request: &oncedv1.BeginRequest{
		Namespace: defaultNamespace, Key: key, Owner: c.owner,
		// Each run is an attempt of its own, and an id is spent once its claim was given back.
		RequestId: uuid.NewString(),
	}}}
	for _, option := range options {
		option(&r.runSettings)
	}
	r.wait, r.failOpen = min(r.wait, longestTime), min(r.failOpen, longestTime)
	// What cannot be sent would fail as if a connection had broken.
	for _, text := range []string{r.request.GetKey(), r.request.GetNamespace(), r.request.GetOwner()} {
		if !utf8.ValidString(text) {
			return nil, fmt.Errorf("%q is not UTF-8", text)
		}
	}
	return r, nil
}

// begin asks, with one request id, until the key is ours, has an outcome, is in doubt, or the wait is over. Where ctx ends
// before, or the answer is an error, a claim that nobody heard of is given back in the background.
func (r *run) begin(ctx context.Context) (answer[*oncedv1.BeginResponse], error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(r.client.open, func() { cancel(ErrClosed) })()
	if ctx.Err() != nil {
		return answer[*oncedv1.BeginResponse]{}, givenUp(ctx)
	}

	begun, err := r.ask(ctx)
	switch {
	case ctx.Err() != nil && begun.message.GetClaim() != nil:
		r.client.inBackground(func() { r.releaseUnused(begun.message.GetClaim()) })
		return begun, givenUp(ctx)
	case ctx.Err() != nil && err != nil:
		r.giveBackUnheard()
		return begun, givenUp(ctx)
	case err != nil && begun.unsettled && !errors.Is(err, errOutage): // The work is to run where it is an outage.
		r.giveBackUnheard()
	}
	return begun, err
}

// ask says of all its calls whether one is unsettled.
func (r *run) ask(ctx context.Context) (begun answer[*oncedv1.BeginResponse], err error) {
	clock := r.client.clock
	started := clock()
	until := started + r.wait
	openAt := started + r.failOpen
	mayOpen := r.failOpen > 0
	unsettled := false
	for longest := firstPoll; ; {
		poll := longest
		if !r.forever {
			poll = max(min(poll, until-clock()), 0)
		}
		if mayOpen {
			poll = 0 // A server that waits for the holder is not silent.
		} else {
			longest = min(longest*2, lastPoll)
		}
		patience := r.client.patience(poll)
		if mayOpen {
			patience = r.patienceToOpen(openAt - clock())
		}
		begun, err = r.poll(ctx, poll, patience)
		unsettled = unsettled || begun.unsettled
		begun.unsettled = unsettled
		if err != nil {
			var unavailable *UnavailableError
			if !mayOpen || !errors.As(err, &unavailable) {
				return begun, err
			}
			if unavailable.told || unavailable.setUp {
				mayOpen = false // It was answered, or is set up wrong: that is no outage.
				continue
			}
			if !clock.sleepUntil(ctx, openAt) {
				return begun, givenUp(ctx)
			}
			return begun, errOutage
		}
		mayOpen = false
		if begun.message.GetInProgress() == nil || (!r.forever && clock() >= until) {
			return begun, nil
		}
	}
}

// patienceToOpen is how long a Begin is tried that the run may fail open after, of whose time so much is left. Each server is
// asked before none is said to be there.
func (r *run) patienceToOpen(left time.Duration) patience {
	share := max(r.failOpen/time.Duration(len(r.client.transport.servers)), shortestShare)
	return patience{total: left, attempt: min(attemptTime, share)}
}

// errOutage is that no server has answered for as long as the caller said, and the work runs all the same.
var errOutage = errors.New("no server answered, and the run fails open")

// poll is one Begin that waits that long, and as long as that even if the answer comes sooner.
func (r *run) poll(ctx context.Context, wait time.Duration, patience patience) (answer[*oncedv1.BeginResponse], error) {
	r.request.Wait = durationpb.New(wait)
	begun, err := call(ctx, r.client.transport, waiting, patience, r.request, oncedv1.IdempotencyServiceClient.Begin)
	if err != nil {
		return begun, err
	}
	if begun.message.GetResult() == nil {
		return begun, unknownAnswer("Begin")
	}
	if begun.message.GetInProgress() != nil {
		// A server may end a wait early, by its own limit. Asking again at once could make a busy loop.
		left := wait - (r.client.clock() - begun.sent)
		if left > 0 && !sleep(ctx, min(left, earlyAnswerPause)) {
			return begun, givenUp(ctx)
		}
	}
	return begun, nil
}

// giveBackUnheard asks once more, in the background, whether the Begin that was given up came to a claim, and gives it back.
// Nothing has run under it.
func (r *run) giveBackUnheard() {
	r.client.inBackground(func() {
		request := proto.CloneOf(r.request)
		request.Wait = nil
		begun, err := call(context.Background(), r.client.transport, waiting, r.client.patience(0), request, oncedv1.IdempotencyServiceClient.Begin)
		if err != nil {
			r.client.log.Debug("onced: whether a Begin that was given up came to a claim is unknown; it lapses by itself", "error", err)
			return
		}
		r.releaseUnused(begun.message.GetClaim())
	})
}

func (r *run) releaseUnused(granted *oncedv1.Claim) {
	if granted == nil {
		return
	}
	claim := newClaim(r.client, r.request, Retry, granted, 0)
	if err := claim.release(context.Background(), Retry, "its caller gave up before the work began"); err != nil && !isClaimLost(err) {
		r.client.log.Debug("onced: a claim whose caller gave up was not given back; it lapses by itself", "error", err)
	}
}
