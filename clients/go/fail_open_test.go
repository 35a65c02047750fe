package onced

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	oncedv1 "onced.dev/go/onced/v1"
)

func TestNoRunFailsOpenOnceAServerHasSaidAnythingButUnavailable(t *testing.T) {
	for name, test := range map[string]struct {
		answers []error // nil: held by somebody.
		opens   bool
	}{
		"unavailable":                      {[]error{refusal(codes.Unavailable, "STORE_UNAVAILABLE")}, true},
		"not of onced":                     {[]error{status.Error(codes.Unavailable, "no backend")}, true},
		"a deadline, then unavailable":     {[]error{refusal(codes.DeadlineExceeded, "DEADLINE_EXCEEDED"), refusal(codes.Unavailable, "STORE_UNAVAILABLE")}, false},
		"unknown, of another server":       {[]error{status.Error(codes.Unknown, "no"), refusal(codes.Unavailable, "STORE_UNAVAILABLE")}, false},
		"cancelled by another server":      {[]error{status.Error(codes.Canceled, "no"), refusal(codes.Unavailable, "STORE_UNAVAILABLE")}, false},
		"internal, of another server":      {[]error{status.Error(codes.Internal, "no"), refusal(codes.Unavailable, "STORE_UNAVAILABLE")}, false},
		"held, then unavailable":           {[]error{nil, refusal(codes.Unavailable, "STORE_UNAVAILABLE")}, false},
		"unavailable, then held, then not": {[]error{refusal(codes.Unavailable, "OVERLOADED"), nil, refusal(codes.Unavailable, "OVERLOADED")}, false},
	} {
		t.Run(name, func(t *testing.T) {
			server := startFake(t)
			calls := 0
			server.begin = func(context.Context, *oncedv1.BeginRequest) (*oncedv1.BeginResponse, error) {
				answer := test.answers[min(calls, len(test.answers)-1)]
				calls++
				return held("anna"), answer
			}
			client := connect(t, server.address, WithTimeout(700*time.Millisecond))
			ran := false
			_, err := Run(t.Context(), client, "k", func(context.Context, *Claim) (int, error) {
				ran = true
				return 1, nil
			}, FailOpen(300*time.Millisecond), Wait(2*time.Second))
			if ran != test.opens || (err == nil) != test.opens || client.Unprotected() != map[bool]uint64{true: 1}[test.opens] {
				t.Errorf("it ran: %v, %v", ran, err)
			}
		})
	}
}

func TestARunThatMayFailOpenHearsOfAHolderBeforeItDoes(t *testing.T) {
	server := startFake(t)
	server.begin = func(ctx context.Context, request *oncedv1.BeginRequest) (*oncedv1.BeginResponse, error) {
		select {
		case <-time.After(request.GetWait().AsDuration()):
		case <-ctx.Done():
		}
		return held("anna"), nil
	}
	_, err := Run(t.Context(), connect(t, server.address), "k", mustNotRun(t), FailOpen(400*time.Millisecond), Wait(time.Second))
	if !errors.Is(err, ErrInProgress) {
		t.Error(err)
	}
}

func TestARunThatMayFailOpenAsksForNoWait(t *testing.T) {
	server := startFake(t)
	server.begin = func(context.Context, *oncedv1.BeginRequest) (*oncedv1.BeginResponse, error) {
		if len(server.asked("Begin")) == 1 {
			return held("anna"), nil
		}
		return granted(7, time.Minute), nil
	}
	if _, err := Run(t.Context(), connect(t, server.address), "k", returns(1), FailOpen(hangs)); err != nil {
		t.Fatal(err)
	}
	asked := waits(server.asked("Begin"))
	if len(asked) != 2 || asked[0] != 0 || asked[1] != firstPoll {
		t.Errorf("the waits were %v", asked)
	}
}

func TestNoRunFailsOpenOnceItsTokenWasRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	write(t, file, "old\n")
	server := startFake(t)
	server.begin = func(ctx context.Context, _ *oncedv1.BeginRequest) (*oncedv1.BeginResponse, error) {
		if metadata.ValueFromIncomingContext(ctx, "authorization")[0] == "Bearer old" {
			write(t, file, "new\n")
			return nil, refusal(codes.Unauthenticated, "CREDENTIALS_EXPIRED")
		}
		return nil, status.Error(codes.Unavailable, "no backend")
	}
	client := connect(t, server.address, WithTokenFile(file), WithTimeout(300*time.Millisecond))
	_, err := Run(t.Context(), client, "k", mustNotRun(t), FailOpen(200*time.Millisecond), Wait(0))
	var unavailable *UnavailableError
	if !errors.As(err, &unavailable) {
		t.Error(err)
	}
}

func TestNoRunFailsOpenForAHostThatNobodyKnows(t *testing.T) {
	client := connect(t, "onced..internal:7411", WithTimeout(300*time.Millisecond))
	_, err := Run(t.Context(), client, "k", mustNotRun(t), FailOpen(100*time.Millisecond), Wait(0))
	var unavailable *UnavailableError
	if !errors.As(err, &unavailable) || !unavailable.Last.isUnknownHost() {
		t.Error(err)
	}
	// Once it was known, it is an outage.
	client.transport.reached.Store(true)
	done, err := Run(t.Context(), client, "k", returns(1), FailOpen(100*time.Millisecond))
	if err != nil || done.Protected {
		t.Errorf("%+v, %v", done, err)
	}
}

func TestARunThatMayFailOpenAsksEachServerFirst(t *testing.T) {
	silent, server := mute(t), startFake(t)
	for name, servers := range map[string]string{
		"the silent one first": silent + "," + server.address,
		"the silent one last":  server.address + "," + silent,
	} {
		t.Run(name, func(t *testing.T) {
			client := connect(t, servers)
			client.transport.current.Store(0)
			done, err := Run(t.Context(), client, "k", returns(1), FailOpen(time.Second))
			if err != nil || !done.Protected {
				t.Errorf("%+v, %v", done, err)
			}
		})
	}
}

func TestARunThatMayFailOpenGivesEachServerItsShareOfTheTime(t *testing.T) {
	for name, test := range map[string]struct {
		servers     string
		opens, most time.Duration
	}{
		"one server":                        {"a:1", time.Second, time.Second},
		"a share":                           {"a:1,b:1", time.Second, 500 * time.Millisecond},
		"enough to answer":                  {"a:1,b:1,c:1,d:1", 200 * time.Millisecond, 100 * time.Millisecond},
		"no more than any attempt is given": {"a:1,b:1", time.Minute, 10 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := connect(t, test.servers).newRun("k", []RunOption{FailOpen(test.opens)})
			if err != nil {
				t.Fatal(err)
			}
			// The share is of the whole, whatever is left.
			for _, left := range []time.Duration{test.opens, test.opens / 2} {
				if got := r.patienceToOpen(left); got != (patience{total: left, attempt: test.most}) {
					t.Errorf("it had %+v", got)
				}
			}
		})
	}
}
