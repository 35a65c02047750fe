package onced

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	oncedv1 "onced.dev/go/onced/v1"
)

func TestACompleteIsRepeatedAndNeverFollowedByARelease(t *testing.T) {
	for name, test := range map[string]struct {
		answers []error
		want    error
	}{
		"lost, then answered":       {[]error{status.Error(codes.Unavailable, "broke"), nil}, nil},
		"of unknown outcome":        {[]error{refusal(codes.Unavailable, "STORE_UNAVAILABLE"), nil}, nil},
		"always lost":               {[]error{status.Error(codes.Unavailable, "broke")}, ErrNotStored},
		"refused":                   {[]error{refusal(codes.FailedPrecondition, "OUTCOME_CONFLICT")}, ErrNotStored},
		"taken over":                {[]error{refusal(codes.Aborted, "CLAIM_LOST")}, ErrClaimLost},
		"lost, and then taken over": {[]error{status.Error(codes.Unavailable, "broke"), refusal(codes.Aborted, "CLAIM_LOST")}, ErrClaimLost},
		"gone":                      {[]error{refusal(codes.NotFound, "RECORD_NOT_FOUND")}, ErrClaimLost},
	} {
		t.Run(name, func(t *testing.T) {
			server := startFake(t)
			server.begin = func(context.Context, *oncedv1.BeginRequest) (*oncedv1.BeginResponse, error) {
				return granted(7, 600*time.Millisecond), nil
			}
			calls := 0
			server.complete = func(context.Context, *oncedv1.CompleteRequest) (*oncedv1.CompleteResponse, error) {
				answer := test.answers[min(calls, len(test.answers)-1)]
				calls++
				return &oncedv1.CompleteResponse{Completed: &oncedv1.Completed{FencingToken: 7}}, answer
			}
			client := connect(t, server.address, WithTimeout(600*time.Millisecond))
			done, err := Run(t.Context(), client, "k", returns("charged"))
			if !errors.Is(err, test.want) || calls < len(test.answers) {
				t.Errorf("%v, after %d calls", err, calls)
			}
			if done.Value != "charged" || !done.RanHere {
				t.Errorf("what was done is not told: %+v", done)
			}
			var notStored *NotStoredError
			if errors.As(err, &notStored) && (string(notStored.Outcome.GetResponse()) != `"charged"` || notStored.FencingToken != 7) {
				t.Errorf("%+v", notStored)
			}
			if released := server.asked("Release"); len(released) != 0 {
				t.Errorf("it was released: %v", released)
			}
		})
	}
}

func TestACallerThatLeavesWhileItsOutcomeIsStoredDropsNothing(t *testing.T) {
	server := startFake(t)
	ctx, cancel := context.WithCancel(t.Context())
	calls := 0
	server.complete = func(inner context.Context, _ *oncedv1.CompleteRequest) (*oncedv1.CompleteResponse, error) {
		cancel()
		if calls++; calls == 1 {
			return nil, status.Error(codes.Unavailable, "broke")
		}
		return &oncedv1.CompleteResponse{Completed: &oncedv1.Completed{FencingToken: 7}}, inner.Err()
	}
	if _, err := Run(ctx, connect(t, server.address), "k", returns(1)); err != nil || calls != 2 {
		t.Errorf("%v, after %d calls", err, calls)
	}
}

func TestAClaimIsRenewedUntilItsCompleteIsAnswered(t *testing.T) {
	server := startFake(t)
	server.begin = func(context.Context, *oncedv1.BeginRequest) (*oncedv1.BeginResponse, error) {
		return granted(7, 400*time.Millisecond), nil
	}
	server.complete = func(context.Context, *oncedv1.CompleteRequest) (*oncedv1.CompleteResponse, error) {
		server.until(t, "Renew", len(server.asked("Renew"))+1)
		return &oncedv1.CompleteResponse{Completed: &oncedv1.Completed{FencingToken: 7}}, nil
	}
	server.renew = func(context.Context, *oncedv1.RenewRequest) (*oncedv1.RenewResponse, error) {
		return nil, status.Error(codes.Unavailable, "broke")
	}
	if _, err := Run(t.Context(), connect(t, server.address), "k", returns(1)); err != nil {
		t.Error(err)
	}
}

func TestARenewalThatIsRefusedBecauseTheOutcomeIsThereIsNoLoss(t *testing.T) {
	server := startFake(t)
	server.begin = func(context.Context, *oncedv1.BeginRequest) (*oncedv1.BeginResponse, error) {
		return granted(7, 400*time.Millisecond), nil
	}
	server.renew = func(context.Context, *oncedv1.RenewRequest) (*oncedv1.RenewResponse, error) {
		return nil, refusal(codes.Aborted, "CLAIM_LOST")
	}
	server.complete = func(context.Context, *oncedv1.CompleteRequest) (*oncedv1.CompleteResponse, error) {
		server.until(t, "Renew", 1)
		return &oncedv1.CompleteResponse{Completed: &oncedv1.Completed{FencingToken: 7}}, nil
	}
	var held atomic.Pointer[Claim]
	_, err := Run(t.Context(), connect(t, server.address), "k", func(_ context.Context, claim *Claim) (int, error) {
		held.Store(claim)
		return 1, nil
	})
	if err != nil || held.Load().WhyLost() != 0 {
		t.Errorf("%v, %v", err, held.Load().WhyLost())
	}
}

func TestAFailureWhoseReleaseIsNotConfirmedSaysSo(t *testing.T) {
	server := startFake(t)
	server.release = func(context.Context, *oncedv1.ReleaseRequest) (*oncedv1.ReleaseResponse, error) {
		return nil, status.Error(codes.Unavailable, "broke")
	}
	client := connect(t, server.address, WithTimeout(200*time.Millisecond))
	_, err := Run(t.Context(), client, "k", func(context.Context, *Claim) (int, error) { return 0, errBroke })
	var failed *FailedError
	if !errors.As(err, &failed) || failed.Released || failed.ReleaseErr == nil || !errors.Is(err, errBroke) {
		t.Errorf("%v", err)
	}
}

func TestAReleaseThatFindsAnotherHolderIsALoss(t *testing.T) {
	server := startFake(t)
	server.release = func(context.Context, *oncedv1.ReleaseRequest) (*oncedv1.ReleaseResponse, error) {
		return nil, refusal(codes.Aborted, "CLAIM_LOST")
	}
	_, err := Run(t.Context(), connect(t, server.address), "k", func(context.Context, *Claim) (int, error) { return 0, errBroke })
	if !errors.Is(err, ErrClaimLost) || !errors.Is(err, errBroke) {
		t.Errorf("%v", err)
	}
}

func TestNothingIsStillRenewedWhenItIsGivenBack(t *testing.T) {
	server := startFake(t)
	server.begin = func(context.Context, *oncedv1.BeginRequest) (*oncedv1.BeginResponse, error) {
		return granted(7, 300*time.Millisecond), nil
	}
	server.renew = func(context.Context, *oncedv1.RenewRequest) (*oncedv1.RenewResponse, error) {
		if len(server.asked("Release")) > 0 {
			t.Error("it is renewed although it was given back")
		}
		return nil, status.Error(codes.Unavailable, "broke")
	}
	_, err := Run(t.Context(), connect(t, server.address), "k", func(context.Context, *Claim) (int, error) {
		server.until(t, "Renew", 1)
		return 0, errBroke
	})
	if !errors.Is(err, ErrFailed) {
		t.Error(err)
	}
	time.Sleep(400 * time.Millisecond) // Longer than a renewal would take to come.
}
