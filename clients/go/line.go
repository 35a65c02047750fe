package onced

import (
	"context"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	oncedv1 "onced.dev/go/onced/v1"
)

const (
	// How many calls are under way on a connection when a session is opened for them.
	sessionCrowd = 16
	// How long none is opened after one that could not be, or after so many in a row that ended so soon.
	sessionRest = 60 * time.Second
	// The same after one that could not be since its server was away, which may soon be back.
	sessionPause                  = time.Second
	sessionsCut, sessionCutWithin = 3, time.Second
	// How much longer than the server the client waits for an answer in a session, but a quarter longer at most.
	sessionGrace = 250 * time.Millisecond
	// How long closing a client waits for a session to end as it should.
	sessionFarewell = 100 * time.Millisecond
)

// A line is a connection to a server, and the session that carries its calls while they are many.
type line struct {
	transport  *transport
	connection *grpc.ClientConn
	service    oncedv1.IdempotencyServiceClient
	// Those of its session.
	goroutines sync.WaitGroup

	mu sync.Mutex
	// How many calls are under way, in the session or not.
	calls int
	// Whether there is a session, also one that is being opened, or that takes no more calls.
	occupied bool
	// The one that takes calls; nil for none.
	session *session
	// When the next one may be opened.
	notBefore moment
	// How many in a row ended too soon.
	cut int
}

// enter counts a call in, and returns the session if there is one that takes calls. For a crowd it has one opened.
func (l *line) enter() *session {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calls++
	if l.calls >= sessionCrowd && !l.occupied && l.transport.sessions && l.transport.clock() >= l.notBefore {
		l.occupied = true
		l.goroutines.Add(1)
		go func() { defer l.goroutines.Done(); l.keepSession() }()
	}
	return l.session
}

func (l *line) leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calls--
}

// keepSession opens a session, and stays with it to its end.
func (l *line) keepSession() {
	clock := l.transport.clock
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	stream, err := l.openStream(ctx, cancel)
	if err != nil {
		l.transport.log.Debug("onced: no session was opened", "error", err)
		l.mu.Lock()
		defer l.mu.Unlock()
		l.occupied = false
		l.notBefore = clock() + sessionRest
		if isAway(status.Convert(err)) {
			l.notBefore = clock() + sessionPause
		}
		return
	}
	opened := clock()
	s := newSession(l, stream)
	l.mu.Lock()
	l.session = s
	l.mu.Unlock()
	l.goroutines.Add(3)
	go func() { defer l.goroutines.Done(); s.write() }()
	go func() { defer l.goroutines.Done(); s.cutIfLate(ctx, cancel) }()
	go func() { defer l.goroutines.Done(); s.endIdle(ctx) }()
	if err := s.read(); err != io.EOF {
		l.transport.log.Debug("onced: a session ended", "error", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	s.end()
	l.occupied = false
	if clock()-opened >= sessionCutWithin {
		l.cut = 0
	} else if l.cut++; l.cut >= sessionsCut {
		l.cut, l.notBefore = 0, clock()+sessionRest
	}
}

// openStream opens a stream that the server takes: its headers have come. ctx is that of the stream.
func (l *line) openStream(ctx context.Context, cancel context.CancelFunc) (sessionStream, error) {
	late := time.AfterFunc(sessionTurn, cancel)
	defer late.Stop()
	signed, _ := l.transport.sign(ctx)
	stream, err := l.service.Session(signed)
	if err != nil {
		return nil, err
	}
	if header, _ := stream.Header(); header == nil {
		_, err = stream.Recv() // It has ended, and this says why.
		return nil, err
	}
	return stream, nil
}

// close ends the session and the connection. No call is under way.
func (l *line) close() {
	l.mu.Lock()
	if l.session != nil {
		l.session.retire()
	}
	l.mu.Unlock()
	over := make(chan struct{})
	go func() { l.goroutines.Wait(); close(over) }()
	select {
	case <-over:
	case <-time.After(sessionFarewell):
	}
	_ = l.connection.Close() // It can only have been closed before.
	<-over
}
