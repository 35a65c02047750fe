package onced

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	oncedv1 "onced.dev/go/onced/v1"
)

// The longest reason of a Release, in bytes.
const reasonMaxBytes = 1024

// Lost is why a claim no longer protects its work.
type Lost int

const (
	// TakenOver is what a server said: somebody took over, or the record was settled or deleted.
	TakenOver Lost = iota + 1
	// LockEnded is that the lock ended on the holder's own clock, for want of a successful renewal: somebody may take over
	// at any moment.
	LockEnded
	// GivenBack is that the run gave the claim back.
	GivenBack
)

// String says it for people.
func (l Lost) String() string {
	switch l {
	case TakenOver:
		return "the claim was taken over, settled or deleted"
	case LockEnded:
		return "the lock could not be renewed in time, so that others may take over"
	case GivenBack:
		return "the claim was given back"
	default:
		return "the claim is held"
	}
}

// A Claim is the right to run the work of a key, as the work gets it. It is kept alive in the background. It may be used by
// any number of goroutines.
type Claim struct {
	client         *Client
	namespace, key string
	granted        *oncedv1.Claim
	protected      bool
	ttl            time.Duration
	// The rule of failures that say nothing.
	rule atomic.Int32
	// The sequence of the last checkpoint.
	sequence atomic.Uint64
	// Ends the context of the work.
	cancel context.CancelCauseFunc

	mu sync.Mutex
	// When the lock ends on this machine's clock, at the earliest.
	ends moment
	why  Lost
	// Whether the work has ended with an outcome, so that nobody need be told of a loss.
	sealed bool
	lost   chan struct{}
}

// newClaim is a claim that came as the answer to a Begin sent at sent; nil for one that protects nothing.
func newClaim(client *Client, request *oncedv1.BeginRequest, rule Rule, granted *oncedv1.Claim, sent moment) *Claim {
	ttl := granted.GetLockTtl().AsDuration()
	claim := &Claim{
		client: client, namespace: request.GetNamespace(), key: request.GetKey(), granted: granted, protected: granted != nil,
		ttl: ttl, ends: sent + granted.GetWaited().AsDuration() + ttl, lost: make(chan struct{}),
		cancel: func(error) {},
	}
	claim.rule.Store(int32(rule))
	claim.sequence.Store(granted.GetCheckpoint().GetSequence())
	return claim
}

// claimKey is that of a claim in the context of its work.
type claimKey struct{}

// ClaimFrom is the claim of the work whose context this is; nil if there is none.
func ClaimFrom(ctx context.Context) *Claim {
	claim, _ := ctx.Value(claimKey{}).(*Claim)
	return claim
}

// Namespace is that of the key.
func (c *Claim) Namespace() string { return c.namespace }

// Key is what the run was begun with: behind a middleware with a scope the key as onced has it, of which the scope is a part.
func (c *Claim) Key() string { return c.key }

// FencingToken is strictly larger than that of every earlier claim of the key. Give it to what the work changes, so that it
// can refuse a stale holder. 0 if the run failed open.
func (c *Claim) FencingToken() uint64 { return c.granted.GetFencingToken() }

// Attempt is how many claims the key has had, this one included. 0 if the run failed open.
func (c *Claim) Attempt() uint64 { return c.granted.GetAttempt() }

// Checkpoint is the last one that an earlier claim of the key saved; false if there is none.
func (c *Claim) Checkpoint() ([]byte, bool) {
	checkpoint := c.granted.GetCheckpoint()
	return checkpoint.GetData(), checkpoint != nil
}

// MaxOutcomeBytes is the size of the largest encoded outcome that can be stored; 0 if none is known.
func (c *Claim) MaxOutcomeBytes() uint64 { return c.granted.GetMaxOutcomeBytes() }

// LockTTL is how long the claim lives without a renewal. Renewals happen by themselves.
func (c *Claim) LockTTL() time.Duration { return c.ttl }

// Protected is false if the run failed open: nobody else is kept from doing the same.
func (c *Claim) Protected() bool { return c.protected }

// LockLeft is how long the lock lives for certain, on this machine's clock; 0 once the claim is lost.
func (c *Claim) LockLeft() time.Duration {
	c.look()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.why != 0 || !c.protected {
		return 0
	}
	return max(c.ends-c.client.clock(), 0)
}

// Lost is closed when the claim no longer protects the work. The context of the work has ended by then, too.
func (c *Claim) Lost() <-chan struct{} { return c.lost }

// WhyLost is 0 while the claim protects the work.
func (c *Claim) WhyLost() Lost {
	c.look()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.why
}

// SetOnFailure is what becomes of the key from now on when the work fails without saying, panics, or ends its goroutine: see
// [OnFailure]. Say [InDoubt] before what must not be done twice, and [Retry] where it is known not to have happened.
func (c *Claim) SetOnFailure(rule Rule) { c.rule.Store(int32(rule)) }

func (c *Claim) onFailure() Rule { return Rule(c.rule.Load()) }

// onLoss says what ends the context of the work.
func (c *Claim) onLoss(cancel context.CancelCauseFunc) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cancel = cancel
	if c.why != 0 {
		cancel(&ClaimLostError{Lost: c.why})
	}
}

// SaveCheckpoint saves where the work is, at most 64 KiB, for whoever takes over after a lapse or a release. It renews the
// lock as well. Of two that are being saved at once, the later call wins. A run that failed open saves nothing.
//
// It fails with a [*Refusal] or an [*UnavailableError], or if ctx ends. The work may go on, unless the claim is lost.
func (c *Claim) SaveCheckpoint(ctx context.Context, data []byte) error {
	if !c.protected {
		return nil
	}
	checkpoint := &oncedv1.Checkpoint{Sequence: c.sequence.Add(1), Data: data}
	return c.renew(ctx, patience{total: c.client.timeout, attempt: c.attemptTime()}, checkpoint)
}

func (c *Claim) lose(why Lost) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.loseLocked(why)
}

// loseLocked tells the work, once. What a server said stands.
func (c *Claim) loseLocked(why Lost) {
	if c.sealed || c.why == TakenOver {
		return
	}
	first := c.why == 0
	c.why = why
	if first {
		// In this order: whoever wakes by Lost finds the context ended.
		c.cancel(&ClaimLostError{Lost: why})
		close(c.lost)
	}
}

// look ends the claim if its lock has ended by the clock.
func (c *Claim) look() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.protected && c.why == 0 && c.client.clock() >= c.ends {
		c.loseLocked(LockEnded)
	}
}

// seal is called when the work has an outcome: from now on the claim is not lost, but completed or not. It returns
// [TakenOver] if that was the end of it already.
func (c *Claim) seal() Lost {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sealed = true
	return c.why
}

func (c *Claim) renew(ctx context.Context, patience patience, checkpoint *oncedv1.Checkpoint) error {
	request := &oncedv1.RenewRequest{
		Namespace: c.namespace, Key: c.key, FencingToken: c.FencingToken(), Checkpoint: checkpoint,
	}
	renewed, err := call(ctx, c.client.transport, holding, patience, request, oncedv1.IdempotencyServiceClient.Renew)
	if err != nil {
		if isClaimLost(err) {
			c.lose(TakenOver)
		}
		return err
	}
	c.mu.Lock()
	c.ends = max(c.ends, renewed.sent+renewed.message.GetLockExpiresIn().AsDuration())
	c.mu.Unlock()
	return nil
}

// release gives the claim back.
func (c *Claim) release(ctx context.Context, rule Rule, reason string) error {
	request := &oncedv1.ReleaseRequest{
		Namespace: c.namespace, Key: c.key, FencingToken: c.FencingToken(), Disposition: rule.disposition(),
		Reason: head(strings.ToValidUTF8(reason, "\uFFFD"), reasonMaxBytes),
	}
	_, err := call(ctx, c.client.transport, holding, c.client.patience(0), request, oncedv1.IdempotencyServiceClient.Release)
	return err
}

// attemptTime leaves time for another attempt of a Renew at another server within the TTL.
func (c *Claim) attemptTime() time.Duration {
	return min(max(c.ttl/4, 250*time.Millisecond), 10*time.Second)
}

// keep renews the claim and watches its lock, until it is stopped.
func (c *Claim) keep() (stop func()) {
	if !c.protected {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	var keepers sync.WaitGroup
	keepers.Add(2)
	go func() { defer keepers.Done(); c.keepRenewed(ctx) }()
	go func() { defer keepers.Done(); c.watchLock(ctx) }()
	return func() {
		cancel()
		keepers.Wait()
	}
}

// keepRenewed renews the lock when about a third of it has passed, for as long as the claim is ours. A lock that ended by
// the clock alone is renewed all the same: nobody may have taken over yet.
func (c *Claim) keepRenewed(ctx context.Context) {
	clock := c.client.clock
	c.mu.Lock()
	next := c.ends - c.ttl + jittered(c.ttl*2/5)
	c.mu.Unlock()
	for clock.sleepUntil(ctx, next) {
		err := c.renew(ctx, patience{total: c.ttl / 3, attempt: c.attemptTime()}, nil)
		switch {
		case err == nil:
			next = clock() + jittered(c.ttl*2/5)
		case isClaimLost(err) || ctx.Err() != nil:
			return
		default:
			c.client.log.DebugContext(ctx, "onced: a renewal failed", "error", err)
			next = clock() + c.ttl/20
		}
	}
}

// watchLock ends the claim on time, whatever its renewals are doing.
func (c *Claim) watchLock(ctx context.Context) {
	for {
		c.look()
		c.mu.Lock()
		ends, why := c.ends, c.why
		c.mu.Unlock()
		if why != 0 || !c.client.clock.sleepUntil(ctx, ends) {
			return
		}
	}
}

// head is the first bytes of a text, cut between characters.
func head(text string, maxBytes int) string {
	if len(text) <= maxBytes {
		return text
	}
	for !utf8.RuneStart(text[maxBytes]) {
		maxBytes--
	}
	return text[:maxBytes]
}
