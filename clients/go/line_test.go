package onced

import (
	"context"
	"io"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	oncedv1 "onced.dev/go/onced/v1"
)

// crowd has so many calls under way on a connection.
func crowd(t *testing.T, client *Client, lane lane, calls int) *line {
	t.Helper()
	line := client.transport.servers[0].lines[lane]
	for range calls {
		line.enter()
		t.Cleanup(line.leave)
	}
	return line
}

// state is what is to be looked at with the mutex.
func (l *line) state() (calls int, occupied, stands bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.calls, l.occupied, l.session != nil
}

func (l *line) stands() bool { _, _, stands := l.state(); return stands }

func (l *line) isFree() bool { _, occupied, _ := l.state(); return !occupied }

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(hangs); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it never came to this: " + what)
		}
	}
}

// inSessionOf is a client whose calls on a connection to the first server go to a session.
func inSessionOf(t *testing.T, servers string, lane lane, options ...Option) (*Client, *line) {
	t.Helper()
	client := connect(t, servers, options...)
	client.transport.current.Store(0)
	line := crowd(t, client, lane, sessionCrowd)
	eventually(t, "a session stands", line.stands)
	return client, line
}

func TestTheSixteenthCallHasASessionOpenedAndNoneWaitsForIt(t *testing.T) {
	server := startFake(t)
	opens := make(chan struct{})
	session := server.carries(renewed)
	server.session = func(stream sessionServer) error {
		server.note("opening", nil)
		<-opens
		return session(stream)
	}
	client := connect(t, server.address)
	line := crowd(t, client, holding, sessionCrowd-2)
	if _, err := renew(t, client, patient); err != nil || !line.isFree() {
		t.Errorf("with one call less: %v, free %v", err, line.isFree())
	}
	crowd(t, client, holding, 1)
	if _, err := renew(t, client, patient); err != nil || line.isFree() {
		t.Errorf("%v, free %v", err, line.isFree())
	}
	server.until(t, "opening", 1)
	if _, err := renew(t, client, patient); err != nil || len(server.asked("Renew")) != 3 {
		t.Errorf("%v, %d unary calls", err, len(server.asked("Renew")))
	}
	close(opens)
	eventually(t, "a session stands", line.stands)
	if got, err := renew(t, client, patient); err != nil || got.unsettled || !cameInSession(got) {
		t.Errorf("%+v, %v", got, err)
	}
	if calls, _, _ := line.state(); calls != sessionCrowd-1 {
		t.Errorf("%d calls are said to be under way", calls)
	}
	if len(server.asked("opening")) != 1 || !client.transport.servers[0].lines[waiting].isFree() {
		t.Error("there is more than one session")
	}
}

func TestBeginsThatWaitAreCountedAndHaveASessionOfTheirOwn(t *testing.T) {
	server := startFake(t)
	let := make(chan struct{})
	server.begin = func(context.Context, *oncedv1.BeginRequest) (*oncedv1.BeginResponse, error) {
		<-let
		return granted(7, time.Minute), nil
	}
	server.session = server.carries(func(request *oncedv1.SessionRequest) ([]*oncedv1.SessionResponse, error) {
		return answerTo(request, &oncedv1.SessionResponse{Answer: &oncedv1.SessionResponse_Begin{Begin: granted(8, time.Minute)}}), nil
	})
	client := connect(t, server.address)
	ended := make(chan error)
	run := func() {
		_, err := Run(t.Context(), client, "k", returns(1))
		ended <- err
	}
	for range sessionCrowd {
		go run()
	}
	eventually(t, "a session stands", client.transport.servers[0].lines[waiting].stands)
	go run()
	if err := <-ended; err != nil { // The others still wait.
		t.Error(err)
	}
	close(let)
	for range sessionCrowd {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	if sent := server.asked("Session"); len(sent) != 1 || sent[0].(*oncedv1.SessionRequest).GetBegin().GetKey() != "k" {
		t.Errorf("the session had %v", sent)
	}
}

func TestNoSessionIsOpenedWhereThatWasSaid(t *testing.T) {
	server := startFake(t)
	server.session = server.carries(renewed)
	client := connect(t, server.address, WithoutSessions())
	line := crowd(t, client, holding, 2*sessionCrowd)
	if got, err := renew(t, client, patient); err != nil || cameInSession(got) || !line.isFree() {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestASessionThatCouldNotBeOpenedIsNotTriedAgainForAMinute(t *testing.T) {
	clock := &handClock{}
	server := startFake(t)
	server.session = func(sessionServer) error {
		server.note("opening", nil)
		return refusal(codes.Unimplemented, "UNIMPLEMENTED")
	}
	client := connect(t, server.address, withClock(clock.read))
	line := crowd(t, client, holding, sessionCrowd)
	server.until(t, "opening", 1)
	eventually(t, "it is known to have failed", line.isFree)
	clock.set(sessionRest - time.Millisecond)
	if _, err := renew(t, client, patient); err != nil || !line.isFree() {
		t.Errorf("%v, tried again: %v", err, !line.isFree())
	}
	clock.set(sessionRest)
	if _, err := renew(t, client, patient); err != nil {
		t.Error(err)
	}
	server.until(t, "opening", 2)
}

func TestAServerThatIsAwaySaysNothingOfSessions(t *testing.T) {
	none := func(*grpc.Server, sessionServer) error { return nil }
	for name, test := range map[string]struct {
		address string
		open    func(*grpc.Server, sessionServer) error
		rest    time.Duration
	}{
		"nobody there": {"127.0.0.1:1", none, sessionPause},
		"unavailable":  {"", func(*grpc.Server, sessionServer) error { return status.Error(codes.Unavailable, "no backend") }, sessionPause},
		"draining":     {"", func(*grpc.Server, sessionServer) error { return refusal(codes.Unavailable, "DRAINING") }, sessionPause},
		"broken connection": {"", func(server *grpc.Server, stream sessionServer) error {
			go server.Stop()
			<-stream.Context().Done()
			return nil
		}, sessionPause},
		"refused": {"", func(*grpc.Server, sessionServer) error { return refusal(codes.PermissionDenied, "ACCESS_DENIED") }, sessionRest},
		"no more": {"", none, sessionRest},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fake{seen: map[string][]any{}}
			server := serve(t, f, "127.0.0.1:0")
			f.session = func(stream sessionServer) error { return test.open(server, stream) }
			if test.address == "" {
				test.address = f.address
			}
			line := crowd(t, connect(t, test.address, withClock((&handClock{}).read)), holding, sessionCrowd)
			eventually(t, "it is known to have failed", line.isFree)
			if line.notBefore != test.rest {
				t.Errorf("none is opened before %v", line.notBefore)
			}
		})
	}
}

func TestASessionMayBeOpenedAgainUnlessItIsCutTimeAndAgain(t *testing.T) {
	clock := &handClock{}
	server := startFake(t)
	cut := make(chan error)
	server.session = func(stream sessionServer) error {
		_ = stream.SendHeader(nil)
		return <-cut
	}
	client, line := inSessionOf(t, server.address, holding, withClock(clock.read))
	again := func(lasts time.Duration) {
		t.Helper()
		crowd(t, client, holding, 1)
		eventually(t, "a session stands", line.stands)
		clock.set(clock.read() + lasts)
		cut <- status.Error(codes.Unavailable, "cut")
		eventually(t, "it has ended", line.isFree)
	}
	for _, lasts := range []time.Duration{0, 0, sessionCutWithin, 0, 0, 0} {
		again(lasts)
	}
	if crowd(t, client, holding, 1); !line.isFree() {
		t.Error("there is another one at once")
	}
	clock.set(clock.read() + sessionRest)
	again(0)
}

func TestASessionThatCarriesNothingIsEnded(t *testing.T) {
	clock := &handClock{}
	server := startFake(t)
	let := make(chan struct{})
	server.session = server.carries(func(request *oncedv1.SessionRequest) ([]*oncedv1.SessionResponse, error) {
		<-let
		return renewed(request)
	})
	client, line := inSessionOf(t, server.address, holding, withClock(clock.read))
	ended := make(chan error, 1)
	go func() {
		_, err := renew(t, client, patient)
		ended <- err
	}()
	server.until(t, "Session", 1)
	clock.set(2 * sessionIdle)
	time.Sleep(2 * tick)
	if !line.stands() {
		t.Error("it was ended with a call open")
	}
	close(let)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	clock.set(clock.read() + sessionIdle - time.Millisecond)
	time.Sleep(2 * tick)
	if !line.stands() {
		t.Error("it was ended too early")
	}
	clock.set(clock.read() + time.Millisecond)
	if end := server.until(t, "the end", 1)[0]; end != io.EOF {
		t.Errorf("it ended by %v", end)
	}
	eventually(t, "it is forgotten", line.isFree)
}

func TestAClosedClientEndsItsSessionsOnceItsCompletesAreAnswered(t *testing.T) {
	server := startFake(t)
	var client *Client
	closed := make(chan error, 1)
	server.session = server.carries(func(request *oncedv1.SessionRequest) ([]*oncedv1.SessionResponse, error) {
		go func() { closed <- client.Close(context.Background()) }()
		<-client.open.Done()
		return answerTo(request, &oncedv1.SessionResponse{Answer: &oncedv1.SessionResponse_Complete{
			Complete: &oncedv1.CompleteResponse{Completed: &oncedv1.Completed{Owner: "a session"}},
		}}), nil
	})
	client, line := inSessionOf(t, server.address, holding)
	done, err := Run(t.Context(), client, "k", returns(1))
	if err != nil || done.Owner != "a session" {
		t.Errorf("%+v, %v", done, err)
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if end := server.until(t, "the end", 1)[0]; end != io.EOF {
		t.Errorf("it ended by %v", end)
	}
	line.goroutines.Wait()
}

func TestClosingAClientDoesNotWaitForASessionThatDoesNotOpenOrEnd(t *testing.T) {
	for name, opens := range map[string]bool{"does not open": false, "does not end": true} {
		t.Run(name, func(t *testing.T) {
			server := startFake(t)
			server.session = func(stream sessionServer) error {
				if opens {
					_ = stream.SendHeader(nil)
				}
				server.note("opening", nil)
				<-stream.Context().Done()
				return nil
			}
			client := connect(t, server.address)
			line := crowd(t, client, holding, sessionCrowd)
			server.until(t, "opening", 1)
			eventually(t, "it stands", func() bool { return line.stands() == opens })
			started := time.Now()
			if err := client.Close(t.Context()); err != nil || time.Since(started) > 10*sessionFarewell {
				t.Errorf("%v, after %v", err, time.Since(started))
			}
			if !line.isFree() {
				t.Error("it is still there")
			}
		})
	}
}

func TestASessionThatIsStuckIsCutOnceItIsOver(t *testing.T) {
	clock := &handClock{}
	server := startFake(t, grpc.StaticStreamWindowSize(64<<10), grpc.StaticConnWindowSize(1<<20))
	server.session = func(stream sessionServer) error {
		_ = stream.SendHeader(nil)
		<-stream.Context().Done() // It reads nothing.
		return nil
	}
	client, line := inSessionOf(t, server.address, holding, withClock(clock.read))
	s := line.session
	for range 8 {
		large := &oncedv1.RenewRequest{Key: "k", Checkpoint: &oncedv1.Checkpoint{Data: make([]byte, 60<<10)}}
		request := inSession(large, time.Minute)
		s.take(request)
		s.takeBack(request.GetId())
	}
	s.retireNow()
	eventually(t, "it is cut", func() bool {
		clock.set(clock.read() + sessionTurn) // It may not have been looked at before.
		return line.isFree()
	})
	if got, err := renew(t, client, patient); err != nil || cameInSession(got) {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestASessionThatEndsWhileItIsOpenedIsNone(t *testing.T) {
	server := startFake(t)
	server.session = func(sessionServer) error {
		server.note("opening", nil)
		return nil // With OK, and without headers.
	}
	client := connect(t, server.address)
	line := crowd(t, client, holding, sessionCrowd)
	server.until(t, "opening", 1)
	eventually(t, "it is known to have failed", line.isFree)
	if _, err := renew(t, client, patient); err != nil || line.stands() {
		t.Error(err)
	}
	if len(server.asked("opening")) != 1 {
		t.Error("it was tried again at once")
	}
}
