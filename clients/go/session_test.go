package onced

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	oncedv1 "onced.dev/go/onced/v1"
)

var patient = patience{total: hangs, attempt: hangs, grace: sessionGrace}

// renew is a call of a holder.
func renew(t *testing.T, client *Client, patience patience) (answer[*oncedv1.RenewResponse], error) {
	return renewKey(t.Context(), client, "k", patience)
}

func renewKey(ctx context.Context, client *Client, key string, patience patience) (answer[*oncedv1.RenewResponse], error) {
	request := &oncedv1.RenewRequest{Namespace: "n", Key: key, FencingToken: 7}
	return call(ctx, client.transport, holding, patience, request, oncedv1.IdempotencyServiceClient.Renew)
}

// answerTo makes an answer that to a call.
func answerTo(request *oncedv1.SessionRequest, answer *oncedv1.SessionResponse) []*oncedv1.SessionResponse {
	answer.Id = request.GetId()
	return []*oncedv1.SessionResponse{answer}
}

// renewed is what a session answers to a Renew: as many seconds as its key has bytes, where a unary call is told 30.
func renewed(request *oncedv1.SessionRequest) ([]*oncedv1.SessionResponse, error) {
	left := time.Duration(len(request.GetRenew().GetKey())) * time.Second
	return answerTo(request, &oncedv1.SessionResponse{Answer: &oncedv1.SessionResponse_Renew{
		Renew: &oncedv1.RenewResponse{LockExpiresIn: durationpb.New(left)},
	}}), nil
}

func cameInSession(got answer[*oncedv1.RenewResponse]) bool {
	return got.message.GetLockExpiresIn().AsDuration() < 30*time.Second
}

// refuses answers with an error.
func refuses(err error) func(*oncedv1.SessionRequest) ([]*oncedv1.SessionResponse, error) {
	return func(request *oncedv1.SessionRequest) ([]*oncedv1.SessionResponse, error) {
		return answerTo(request, &oncedv1.SessionResponse{Answer: &oncedv1.SessionResponse_Error{Error: status.Convert(err).Proto()}}), nil
	}
}

// overloaded is what a server answers whose limit of that name is reached.
func overloaded(limit string) error {
	info := &errdetails.ErrorInfo{Domain: errorDomain, Reason: "OVERLOADED", Metadata: map[string]string{"limit": limit}}
	st, err := status.New(codes.Unavailable, "full").WithDetails(info)
	if err != nil {
		panic(err)
	}
	return st.Err()
}

func silent(*oncedv1.SessionRequest) ([]*oncedv1.SessionResponse, error) { return nil, nil }

// sentInSession is which of the calls that a session was sent are of such a kind: to be carried out, or cancels.
func sentInSession(server *fake, cancels bool) (calls []*oncedv1.SessionRequest) {
	for _, call := range server.asked("Session") {
		if request := call.(*oncedv1.SessionRequest); (request.GetCancel() != nil) == cancels {
			calls = append(calls, request)
		}
	}
	return calls
}

func TestEachCallGetsItsOwnAnswerInWhateverOrder(t *testing.T) {
	const calls = 9
	server := startFake(t)
	var held []*oncedv1.SessionResponse
	server.session = server.carries(func(request *oncedv1.SessionRequest) ([]*oncedv1.SessionResponse, error) {
		answers, _ := renewed(request)
		unknown, _ := renewed(&oncedv1.SessionRequest{Id: request.GetId() + 1000})
		held = slices.Concat(answers, unknown, held)
		if len(held) < 2*calls {
			return nil, nil
		}
		return slices.Concat(held, held), nil // Each twice.
	})
	client, _ := inSessionOf(t, server.address, holding)
	var callers sync.WaitGroup
	for bytes := range calls {
		callers.Add(1)
		go func() {
			defer callers.Done()
			got, err := renewKey(t.Context(), client, strings.Repeat("k", bytes+1), patient)
			if err != nil || got.message.GetLockExpiresIn().AsDuration() != time.Duration(bytes+1)*time.Second {
				t.Errorf("%d: %+v, %v", bytes+1, got, err)
			}
		}()
	}
	callers.Wait()
	ids := map[uint64]bool{}
	for _, call := range sentInSession(server, false) {
		ids[call.GetId()] = true
	}
	if len(ids) != calls || len(server.asked("Renew")) != 0 {
		t.Errorf("%d ids, %d unary calls", len(ids), len(server.asked("Renew")))
	}
}

func TestAnAnswerThatIsNoneToTheCallIsFinal(t *testing.T) {
	for name, answer := range map[string]*oncedv1.SessionResponse{
		"nothing":        {},
		"of other calls": {Answer: &oncedv1.SessionResponse_Begin{Begin: granted(7, time.Minute)}},
		"no error":       {Answer: &oncedv1.SessionResponse_Error{Error: &statuspb.Status{}}},
	} {
		t.Run(name, func(t *testing.T) {
			server := startFake(t)
			server.session = server.carries(func(request *oncedv1.SessionRequest) ([]*oncedv1.SessionResponse, error) {
				return answerTo(request, answer), nil
			})
			client, line := inSessionOf(t, server.address, holding)
			got, err := renew(t, client, patient)
			var refused *Refusal
			if !errors.As(err, &refused) || refused.Code != codes.Internal || !got.unsettled {
				t.Errorf("%+v, %v", got, err)
			}
			if len(server.asked("Renew")) != 0 || !line.stands() {
				t.Error("it was made again, or the session was left")
			}
		})
	}
}

func TestAnErrorInASessionCountsAsThatOfAUnaryCall(t *testing.T) {
	server := startFake(t)
	later, err := status.Convert(refusal(codes.Unavailable, "OVERLOADED")).WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	var answer error
	clock := &handClock{}
	server.session = server.carries(func(request *oncedv1.SessionRequest) ([]*oncedv1.SessionResponse, error) {
		clock.set(clock.read() + hangs) // There is no time for another one.
		return refuses(answer)(request)
	})
	client, line := inSessionOf(t, server.address, holding, withClock(clock.read))
	for name, test := range map[string]struct {
		answer      error
		told, again bool
	}{
		"refused":          {refusal(codes.Aborted, "CLAIM_LOST"), true, false},
		"asked to wait":    {later.Err(), false, true},
		"another limit":    {overloaded("max_connections"), false, true},
		"of another front": {status.Error(codes.Unknown, "no"), true, true},
	} {
		answer = test.answer
		_, err := renew(t, client, patient)
		var refused *Refusal
		var unavailable *UnavailableError
		if !errors.As(err, &refused) || refused.Code != status.Code(answer) || refused.Reason != refusalOf(status.Convert(answer)).Reason {
			t.Errorf("%s: %v", name, err)
		}
		if errors.As(err, &unavailable) != test.again || test.again && unavailable.told != test.told {
			t.Errorf("%s: %+v", name, err)
		}
	}
	if len(server.asked("Renew")) != 0 || !line.stands() {
		t.Error("a call was unary, or the session was left")
	}
}

func TestACallWhoseSessionEndsIsMadeAgainAtOnceByItself(t *testing.T) {
	ends := map[string]error{
		"by OK": nil, "by an error": refusal(codes.Unavailable, "DRAINING"), "for good": refusal(codes.Unauthenticated, "CREDENTIALS_EXPIRED"),
	}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			clock := &handClock{}
			server := startFake(t)
			server.session = func(stream sessionServer) error {
				_ = stream.SendHeader(nil)
				_, _ = stream.Recv()
				clock.set(3 * time.Second)
				return end
			}
			client, line := inSessionOf(t, server.address, holding, withClock(clock.read))
			got, err := renew(t, client, patient)
			if err != nil || cameInSession(got) || !got.unsettled || got.sent != 3*time.Second {
				t.Errorf("%+v, %v", got, err)
			}
			if len(server.asked("Renew")) != 1 {
				t.Errorf("it was made %d times", len(server.asked("Renew")))
			}
			eventually(t, "the session is forgotten", line.isFree)
		})
	}
}

func TestACallWhoseSessionEndsHasWhatIsLeftOfItsAttempt(t *testing.T) {
	server := startFake(t)
	server.session = func(stream sessionServer) error {
		_ = stream.SendHeader(nil)
		_, _ = stream.Recv()
		time.Sleep(200 * time.Millisecond)
		return nil
	}
	var left time.Duration
	server.renew = func(ctx context.Context, _ *oncedv1.RenewRequest) (*oncedv1.RenewResponse, error) {
		deadline, _ := ctx.Deadline()
		left = time.Until(deadline)
		return &oncedv1.RenewResponse{LockExpiresIn: durationpb.New(time.Minute)}, nil
	}
	client, _ := inSessionOf(t, server.address, holding)
	if _, err := renew(t, client, patience{total: hangs, attempt: 5 * time.Second}); err != nil || left > 4800*time.Millisecond || left < 3*time.Second {
		t.Errorf("%v, with %v left", err, left)
	}
}

func TestASessionThatAnswersThatItWillEndTakesNoMoreCalls(t *testing.T) {
	for _, answer := range []error{
		refusal(codes.Unavailable, "DRAINING"), refusal(codes.Unauthenticated, "CREDENTIALS_MISSING"),
		refusal(codes.Unauthenticated, "CREDENTIALS_INVALID"), refusal(codes.Unauthenticated, "CREDENTIALS_EXPIRED"),
	} {
		t.Run(reasonOf(refusalOf(status.Convert(answer))), func(t *testing.T) {
			server := startFake(t)
			file := filepath.Join(t.TempDir(), "token")
			write(t, file, "old\n")
			let := make(chan struct{})
			session := server.carries(func(request *oncedv1.SessionRequest) ([]*oncedv1.SessionResponse, error) {
				if len(server.asked("Session")) == 1 {
					return nil, nil // This one stays open.
				}
				<-let
				answers, _ := refuses(answer)(request)
				first, _ := renewed(&oncedv1.SessionRequest{Id: request.GetId() - 1})
				return append(answers, first...), nil
			})
			server.session = func(stream sessionServer) error {
				server.note("opening", metadata.ValueFromIncomingContext(stream.Context(), "authorization")[0])
				return session(stream)
			}
			server.renew = func(ctx context.Context, _ *oncedv1.RenewRequest) (*oncedv1.RenewResponse, error) {
				server.note("token", metadata.ValueFromIncomingContext(ctx, "authorization")[0])
				return &oncedv1.RenewResponse{LockExpiresIn: durationpb.New(time.Minute)}, nil
			}
			client, line := inSessionOf(t, server.address, holding, WithTokenFile(file))
			first := make(chan bool, 1)
			go func() {
				got, err := renew(t, client, patient)
				first <- err == nil && cameInSession(got)
			}()
			server.until(t, "Session", 1)
			write(t, file, "new\n")
			client.transport.bearer.renewed("", 0)
			close(let)
			got, err := renew(t, client, patient)
			if err != nil || cameInSession(got) || !got.unsettled {
				t.Errorf("%+v, %v", got, err)
			}
			if shown := server.asked("token"); len(shown) != 1 || shown[0] != "Bearer new" {
				t.Errorf("it showed %v", shown)
			}
			if !<-first {
				t.Error("the call that was open was not answered in the session")
			}
			server.until(t, "the end", 1)
			eventually(t, "it is forgotten", line.isFree)
			if opened := server.asked("opening"); len(opened) != 1 || opened[0] != "Bearer old" {
				t.Errorf("sessions opened by %v", opened)
			}
		})
	}
}

func TestACallThatAFullSessionRefusesIsMadeAgainAtOnceByItself(t *testing.T) {
	server := startFake(t)
	server.session = server.carries(refuses(overloaded("max_session_calls")))
	client, line := inSessionOf(t, server.address, holding)
	got, err := renew(t, client, patient)
	if err != nil || cameInSession(got) || got.unsettled {
		t.Errorf("%+v, %v", got, err)
	}
	if len(sentInSession(server, false)) != 1 || len(server.asked("Renew")) != 1 || !line.stands() {
		t.Error("it was made more than once, or the session was left")
	}
}

func TestACallerThatGivesUpTakesItsCallBack(t *testing.T) {
	server := startFake(t)
	server.session = server.carries(silent)
	client, line := inSessionOf(t, server.address, holding)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		server.until(t, "Session", 1)
		cancel()
	}()
	if got, err := renewKey(ctx, client, "k", patient); !errors.Is(err, context.Canceled) || !got.unsettled {
		t.Errorf("%+v, %v", got, err)
	}
	eventually(t, "it is cancelled", func() bool { return len(sentInSession(server, true)) == 1 })
	if len(server.asked("Renew")) != 0 || !line.stands() || len(line.session.open) != 0 {
		t.Error("it was made again, or the session was left, or something stays in it")
	}
}

func TestLargeCallsAndThoseBeyondTheLimitGoByThemselves(t *testing.T) {
	server := startFake(t)
	server.session = server.carries(func(request *oncedv1.SessionRequest) ([]*oncedv1.SessionResponse, error) {
		if request.GetRenew().GetCheckpoint() == nil {
			return nil, nil // Those fill it.
		}
		return renewed(request)
	})
	client, line := inSessionOf(t, server.address, holding)
	checkpoint := func(bytes int) bool {
		t.Helper()
		request := &oncedv1.RenewRequest{Key: "k", Checkpoint: &oncedv1.Checkpoint{Data: make([]byte, bytes)}}
		got, err := call(t.Context(), client.transport, holding, patient, request, oncedv1.IdempotencyServiceClient.Renew)
		if err != nil {
			t.Error(err)
		}
		return cameInSession(got)
	}
	if !checkpoint(60<<10) || checkpoint(64<<10) {
		t.Error("the limit is another one")
	}
	fill := func() {
		request := inSession(&oncedv1.RenewRequest{Key: "k"}, time.Minute)
		if line.session.take(request) == nil {
			t.Fatal("it takes no more")
		}
	}
	for range sessionMaxCalls - 1 {
		fill()
	}
	server.until(t, "Session", sessionMaxCalls) // So that none is still to be sent.
	if !checkpoint(1) {
		t.Error("it takes less than it may")
	}
	fill()
	if checkpoint(1) {
		t.Error("it takes more than it may")
	}
}

func TestWhatAServerDoesNotReadDoesNotPileUp(t *testing.T) {
	client := connect(t, "127.0.0.1:1")
	s := newSession(crowd(t, client, holding, 0), nil) // Nothing is ever sent.
	var ids []uint64
	for range 3 * sessionMaxCalls {
		request := inSession(&oncedv1.RenewRequest{Key: "k"}, time.Minute)
		if s.take(request) != nil {
			ids = append(ids, request.GetId())
		}
		if len(ids) == sessionMaxCalls {
			for _, id := range ids {
				s.takeBack(id) // They never wait.
			}
			ids = nil
		}
	}
	if len(s.queue) != cap(s.queue) || len(s.open) != 0 || len(ids) != 0 {
		t.Errorf("%d of %d are to be sent, %d are open", len(s.queue), cap(s.queue), len(s.open))
	}
}

func TestACallIsSentAsItWasWhenItWasMade(t *testing.T) {
	s := newSession(crowd(t, connect(t, "127.0.0.1:1"), holding, 0), nil)
	outcome := []byte("paid")
	s.take(inSession(&oncedv1.CompleteRequest{Outcome: &oncedv1.Outcome{Result: &oncedv1.Outcome_Response{Response: outcome}}}, time.Minute))
	copy(outcome, "free")
	sent, err := proto.Marshal(<-s.queue)
	if err != nil {
		t.Fatal(err)
	}
	var request oncedv1.SessionRequest
	if err := proto.Unmarshal(sent, &request); err != nil || string(request.GetComplete().GetOutcome().GetResponse()) != "paid" {
		t.Errorf("%v, %v", &request, err)
	}
}

func TestWhatCannotBeEncodedFailsAlone(t *testing.T) {
	server := startFake(t)
	server.session = server.carries(renewed)
	client, line := inSessionOf(t, server.address, holding)
	if _, err := renewKey(t.Context(), client, "\xff", patient); err == nil {
		t.Error("it was sent")
	}
	if got, err := renew(t, client, patient); err != nil || !cameInSession(got) || !line.stands() {
		t.Errorf("%+v, %v", got, err)
	}
}
