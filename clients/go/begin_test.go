package onced

import (
	"context"
	"errors"
	"math"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	oncedv1 "onced.dev/go/onced/v1"
)

func waits(asked []any) []time.Duration {
	var waits []time.Duration
	for _, request := range asked {
		waits = append(waits, request.(*oncedv1.BeginRequest).GetWait().AsDuration())
	}
	return waits
}

func TestALongWaitIsSeveralBeginsOfOneRequestID(t *testing.T) {
	clock := &handClock{}
	server := startFake(t)
	server.begin = func(_ context.Context, request *oncedv1.BeginRequest) (*oncedv1.BeginResponse, error) {
		clock.set(clock.read() + request.GetWait().AsDuration()) // It waits as long as it is asked to.
		return held("anna"), nil
	}
	client := connect(t, server.address, withClock(clock.read))
	_, err := Run(t.Context(), client, "k", mustNotRun(t), Wait(40*time.Second))
	var inProgress *InProgressError
	if !errors.As(err, &inProgress) || inProgress.Owner != "anna" {
		t.Fatal(err)
	}
	asked := server.asked("Begin")
	want := []time.Duration{1, 2, 4, 8, 16, 9}
	for i, wait := range waits(asked) {
		if i >= len(want) || wait != want[i]*time.Second {
			t.Fatalf("the waits were %v", waits(asked))
		}
		if asked[i].(*oncedv1.BeginRequest).GetRequestId() != asked[0].(*oncedv1.BeginRequest).GetRequestId() {
			t.Error("another request id")
		}
	}
}

func TestAnAnswerThatComesTooSoonIsFollowedByAPause(t *testing.T) {
	server := startFake(t)
	var times []time.Time
	server.begin = func(context.Context, *oncedv1.BeginRequest) (*oncedv1.BeginResponse, error) {
		if times = append(times, time.Now()); len(times) == 3 {
			return granted(7, time.Minute), nil
		}
		return held("anna"), nil
	}
	if _, err := Run(t.Context(), connect(t, server.address), "k", returns(1), WaitForever()); err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		if pause := times[i+1].Sub(times[i]); pause < earlyAnswerPause {
			t.Errorf("it was asked again after %v", pause)
		}
	}
}

func TestARunWithoutWaitAsksOnce(t *testing.T) {
	server := startFake(t)
	server.begin = func(context.Context, *oncedv1.BeginRequest) (*oncedv1.BeginResponse, error) { return held("anna"), nil }
	if _, err := Run(t.Context(), connect(t, server.address), "k", mustNotRun(t), Wait(0)); !errors.Is(err, ErrInProgress) {
		t.Error(err)
	}
	if asked := waits(server.asked("Begin")); len(asked) != 1 || asked[0] != 0 {
		t.Errorf("the waits were %v", asked)
	}
}

func TestACallerThatGivesUpGivesBackTheClaimThatItNeverHeardOf(t *testing.T) {
	for name, giveUp := range map[string]func(*Client, context.CancelFunc) error{
		"cancels": func(_ *Client, cancel context.CancelFunc) error { cancel(); return context.Canceled },
		"closes": func(client *Client, _ context.CancelFunc) error {
			go func() { _ = client.Close(context.Background()) }()
			return ErrClosed
		},
	} {
		t.Run(name, func(t *testing.T) {
			server := startFake(t)
			begun := make(chan struct{})
			server.begin = func(ctx context.Context, request *oncedv1.BeginRequest) (*oncedv1.BeginResponse, error) {
				if request.GetWait() != nil {
					close(begun)
					<-ctx.Done() // The claim is made, and its answer is never heard.
				}
				return granted(7, time.Minute), nil
			}
			client := connect(t, server.address)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ended := make(chan error, 1)
			go func() {
				_, err := Run(ctx, client, "k", mustNotRun(t))
				ended <- err
			}()
			<-begun
			want := giveUp(client, cancel)
			if err := <-ended; !errors.Is(err, want) || !errors.Is(err, ErrNotBegun) {
				t.Error(err)
			}
			release := server.until(t, "Release", 1)[0].(*oncedv1.ReleaseRequest)
			if release.GetFencingToken() != 7 || release.GetDisposition() != oncedv1.Disposition_DISPOSITION_RETRY {
				t.Errorf("%v", release)
			}
			asked := server.asked("Begin")
			if len(asked) != 2 || asked[0].(*oncedv1.BeginRequest).GetRequestId() != asked[1].(*oncedv1.BeginRequest).GetRequestId() {
				t.Errorf("it was asked by %v", asked)
			}
		})
	}
}

func TestACallerThatHadGivenUpBeforeAsksNothing(t *testing.T) {
	server := startFake(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("the shop is closing")
	cancel(cause)
	_, err := Run(ctx, connect(t, server.address), "k", mustNotRun(t))
	if !errors.Is(err, context.Canceled) || !errors.Is(err, cause) {
		t.Error(err)
	}
	if asked := server.asked("Begin"); len(asked) != 0 {
		t.Errorf("it was asked %v", asked)
	}
}

func TestABeginWhoseAnswersAreLostIsGivenBackWhenItsTimeIsUp(t *testing.T) {
	server := startFake(t)
	lost := 0
	server.begin = func(_ context.Context, request *oncedv1.BeginRequest) (*oncedv1.BeginResponse, error) {
		if request.GetWait() != nil {
			lost++
			return nil, status.Error(codes.Unavailable, "the connection broke")
		}
		return granted(7, time.Minute), nil
	}
	_, err := Run(t.Context(), connect(t, server.address, WithTimeout(300*time.Millisecond)), "k", mustNotRun(t), Wait(time.Millisecond))
	var unavailable *UnavailableError
	if !errors.As(err, &unavailable) || lost < 2 {
		t.Errorf("%v, after %d calls", err, lost)
	}
	server.until(t, "Release", 1)
}

func TestABeginWhoseAnswerIsLostIsGivenBackWhateverComesOfTheNext(t *testing.T) {
	for name, last := range map[string]error{
		"refused":  refusal(codes.PermissionDenied, "ACCESS_DENIED"),
		"finished": nil, // By an answer that holds nothing known.
	} {
		t.Run(name, func(t *testing.T) {
			server := startFake(t)
			server.begin = func(_ context.Context, request *oncedv1.BeginRequest) (*oncedv1.BeginResponse, error) {
				switch {
				case request.GetWait() == nil:
					return granted(7, time.Minute), nil
				case len(server.asked("Begin")) == 1:
					return nil, status.Error(codes.Unavailable, "the connection broke")
				default:
					return &oncedv1.BeginResponse{}, last
				}
			}
			// The answer was lost before the call that is refused, or in the same one.
			for _, options := range [][]RunOption{nil, {FailOpen(hangs)}} {
				if _, err := Run(t.Context(), connect(t, server.address), "k", mustNotRun(t), options...); !errors.Is(err, ErrNotBegun) {
					t.Error(err)
				}
				server.until(t, "Release", 1)
				server.mu.Lock()
				clear(server.seen)
				server.mu.Unlock()
			}
		})
	}
}

func TestTheNextServerIsTriedAtOnceAndTheOneThatAnsweredIsKept(t *testing.T) {
	away, server := startFake(t), startFake(t)
	away.begin = func(ctx context.Context, _ *oncedv1.BeginRequest) (*oncedv1.BeginResponse, error) {
		return nil, pushedBack(ctx, "3600000")
	}
	client := connect(t, away.address+","+server.address)
	for range 5 {
		if _, err := Run(t.Context(), client, "k", returns(1)); err != nil {
			t.Fatal(err)
		}
	}
	if asked := len(away.asked("Begin")); asked > 1 {
		t.Errorf("a server that asked for an hour was asked %d times", asked)
	}
}

func TestTheLongestPushbackOfARoundCounts(t *testing.T) {
	patient, hasty := startFake(t), startFake(t)
	patient.begin = func(ctx context.Context, _ *oncedv1.BeginRequest) (*oncedv1.BeginResponse, error) {
		return nil, pushedBack(ctx, "3600000")
	}
	hasty.begin = func(ctx context.Context, _ *oncedv1.BeginRequest) (*oncedv1.BeginResponse, error) {
		return nil, pushedBack(ctx, "1")
	}
	_, err := Run(t.Context(), connect(t, patient.address+","+hasty.address), "k", mustNotRun(t))
	var unavailable *UnavailableError
	if !errors.As(err, &unavailable) || reasonOf(err) != "OVERLOADED" {
		t.Error(err)
	}
	for _, server := range []*fake{patient, hasty} {
		if asked := len(server.asked("Begin")); asked != 1 {
			t.Errorf("a server was asked %d times", asked)
		}
	}
}

func TestASilentServerIsLeftForTheNext(t *testing.T) {
	server := startFake(t)
	client := connect(t, mute(t)+","+server.address)
	client.transport.current.Store(0)
	if _, err := Run(t.Context(), client, "k", returns(1)); err != nil {
		t.Error(err)
	}
}

func TestAServerThatComesBackIsFoundAgain(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	_ = listener.Close()
	client := connect(t, address)
	ended := make(chan error, 1)
	go func() {
		_, err := Run(t.Context(), client, "k", returns(1))
		ended <- err
	}()
	time.Sleep(300 * time.Millisecond) // So that it has failed to connect.
	server := &fake{seen: map[string][]any{}}
	serve(t, server, address)
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestARefusalIsFinal(t *testing.T) {
	server := startFake(t)
	server.begin = func(context.Context, *oncedv1.BeginRequest) (*oncedv1.BeginResponse, error) {
		return nil, refusal(codes.PermissionDenied, "ACCESS_DENIED")
	}
	_, err := Run(t.Context(), connect(t, server.address), "k", mustNotRun(t), FailOpen(time.Minute))
	var refused *Refusal
	if !errors.As(err, &refused) || refused.Code != codes.PermissionDenied || !strings.Contains(err.Error(), "ACCESS_DENIED") {
		t.Error(err)
	}
	if asked := len(server.asked("Begin")); asked != 1 {
		t.Errorf("it was asked %d times", asked)
	}
}

func TestWhatCannotBeSentIsRefusedAtOnce(t *testing.T) {
	server := startFake(t)
	if _, err := Run(t.Context(), connect(t, server.address), "\xff", mustNotRun(t)); !errors.Is(err, ErrNotBegun) {
		t.Error(err)
	}
}

func TestATokenThatIsRefusedIsReadAgainAndTheCallRepeatedAtOnce(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	write(t, file, "old\n")
	server := startFake(t)
	var shown []string
	server.begin = func(ctx context.Context, _ *oncedv1.BeginRequest) (*oncedv1.BeginResponse, error) {
		shown = append(shown, strings.Join(metadata.ValueFromIncomingContext(ctx, "authorization"), " and "))
		if shown[len(shown)-1] == "Bearer old" {
			write(t, file, "new\n")
			return nil, refusal(codes.Unauthenticated, "CREDENTIALS_EXPIRED")
		}
		return nil, refusal(codes.Unauthenticated, "CREDENTIALS_INVALID")
	}
	client := connect(t, server.address, WithTokenFile(file))
	// What is meant for other services is not sent.
	ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer of the caller", "x-other", "1")
	_, err := Run(ctx, client, "k", mustNotRun(t))
	if reasonOf(err) != "CREDENTIALS_INVALID" || len(shown) != 2 || shown[1] != "Bearer new" {
		t.Errorf("%v, after %q", err, shown)
	}
}

func TestVeryLongTimesAreTimes(t *testing.T) {
	for name, options := range map[string][]RunOption{
		"wait":      {Wait(math.MaxInt64)},
		"fail open": {Wait(math.MaxInt64), FailOpen(math.MaxInt64)},
	} {
		t.Run(name, func(t *testing.T) {
			server := startFake(t)
			server.begin = func(ctx context.Context, _ *oncedv1.BeginRequest) (*oncedv1.BeginResponse, error) {
				switch len(server.asked("Begin")) {
				case 1:
					return nil, pushedBack(ctx, "1")
				case 2:
					return held("anna"), nil
				default:
					return granted(7, time.Minute), nil
				}
			}
			client := connect(t, server.address, WithTimeout(math.MaxInt64))
			if _, err := Run(t.Context(), client, "k", returns(1), options...); err != nil {
				t.Error(err)
			}
		})
	}
}

// mute takes connections, and says nothing.

func mute(t *testing.T) (address string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	return listener.Addr().String()
}

func TestACallIsRepeatedWhereItsStreamBrokeAndNotWhereItWasAnswered(t *testing.T) {
	behind := &fake{seen: map[string][]any{}}
	calls := grpc.NewServer()
	oncedv1.RegisterIdempotencyServiceServer(calls, behind)
	broken := false
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	front := &http.Server{Protocols: &protocols, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !broken {
			broken = true
			panic(http.ErrAbortHandler) // Ends the stream with RST_STREAM INTERNAL_ERROR.
		}
		calls.ServeHTTP(w, r)
	})}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = front.Serve(listener) }()
	t.Cleanup(func() { _ = front.Close() })
	client := connect(t, listener.Addr().String())
	if _, err := Run(t.Context(), client, "k", returns(1)); err != nil || !broken {
		t.Error(err)
	}
	behind.begin = func(context.Context, *oncedv1.BeginRequest) (*oncedv1.BeginResponse, error) {
		return nil, status.Error(codes.Internal, "no")
	}
	asked := func() int {
		// Whether there is a claim to give back is asked without a wait.
		return len(slices.DeleteFunc(waits(behind.asked("Begin")), func(wait time.Duration) bool { return wait == 0 }))
	}
	before := asked()
	if _, err := Run(t.Context(), client, "k", mustNotRun(t)); !errors.Is(err, ErrNotBegun) || asked() != before+1 {
		t.Errorf("%v, after %d calls", err, asked()-before)
	}
}
