package onced

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// A Client calls one or several servers that share a store. It may be used by any number of goroutines, and connects when
// it is first used. Make one per process, and [Client.Close] it at the end.
//
// Calls go to the server that answered last. When it fails, the next one is tried, with the same arguments, until the
// call's time is up.
type Client struct {
	transport   *transport
	timeout     time.Duration
	owner       string
	clock       clock
	log         *slog.Logger
	unprotected atomic.Uint64

	// Ends when the client is closed, and all Begins with it.
	open context.Context
	shut context.CancelCauseFunc

	mu sync.Mutex
	// Runs that have not ended, and what they left to be done in the background.
	busy   int
	closed bool
	// Closed when the client is, and nothing is busy.
	idle chan struct{}
}

// New makes a client of servers: HOST:PORT, http://HOST:PORT or, by TLS, https://HOST:PORT, with commas between. An empty
// text is what ONCED_SERVER says, or else 127.0.0.1:7411.
//
// It fails with a [*SetUpError] if an address or a file cannot be used, or if a token would go over a network without
// TLS. Whether a server is there shows at the first call.
func New(servers string, options ...Option) (*Client, error) {
	s := settings{timeout: defaultTimeout, owner: defaultOwner(), log: slog.Default(), clock: systemClock()}
	for _, option := range options {
		option(&s)
	}
	if s.timeout <= 0 {
		return nil, setUpErrorf("calls cannot be tried for %v: say more by WithTimeout", s.timeout)
	}
	s.timeout = min(s.timeout, longestTime)
	transport, err := newTransport(splitServers(servers), &s)
	if err != nil {
		return nil, err
	}
	client := &Client{
		transport: transport, timeout: s.timeout, owner: s.owner, clock: s.clock, log: s.log,
		idle: make(chan struct{}),
	}
	client.open, client.shut = context.WithCancelCause(context.Background())
	return client, nil
}

// MustNew is [New] for variables of a package. It panics where New fails.
func MustNew(servers string, options ...Option) *Client {
	client, err := New(servers, options...)
	if err != nil {
		panic(err)
	}
	return client
}

// Unprotected is how many runs of this client have failed open: see [FailOpen].
func (c *Client) Unprotected() uint64 {
	return c.unprotected.Load()
}

// Close lets nothing new begin, and waits for what is under way: work, the storing of its outcome, and claims that are
// being given back. Runs that wait for somebody else's work end with [ErrClosed].
//
// It fails if ctx ends first. What is under way then goes on by itself, and its connections stay open until it is done:
// closing never ends work, and never drops an outcome. Close must not be called by the work of this client.
func (c *Client) Close(ctx context.Context) error {
	c.mu.Lock()
	if !c.closed {
		c.closed = true
		c.shut(ErrClosed)
		c.endIfIdle()
	}
	busy := c.busy
	c.mu.Unlock()
	select {
	case <-c.idle:
		return nil
	default:
	}
	select {
	case <-c.idle:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("onced: of the client that was closed, up to %d runs still go on: %w", busy, context.Cause(ctx))
	}
}

// enter counts a run in, unless the client is closed.
func (c *Client) enter() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return ErrClosed
	}
	c.busy++
	return nil
}

// inBackground does what a run leaves to be done. The run must not have ended yet.
func (c *Client) inBackground(what func()) {
	c.mu.Lock()
	c.busy++
	c.mu.Unlock()
	go func() {
		defer c.leave()
		what()
	}()
}

// leave counts a run out. The last one of a closed client ends the connections.
func (c *Client) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.busy--
	c.endIfIdle()
}

func (c *Client) endIfIdle() {
	if c.closed && c.busy == 0 {
		c.transport.close()
		close(c.idle)
	}
}

// patience is that of a call which asks for a wait.
func (c *Client) patience(wait time.Duration) patience {
	return patience{total: wait + c.timeout, attempt: wait + attemptTime, grace: sessionGrace}
}
