package onced

import (
	"context"
	"errors"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	oncedv1 "onced.dev/go/onced/v1"
)

// aClaim is one of 10 s, sent at 100 s, that the server had for 3 s before it armed the lock.
func aClaim(t *testing.T, server string) (*Claim, *handClock) {
	clock := &handClock{}
	clock.set(100 * time.Second)
	client := connect(t, server, withClock(clock.read))
	return newClaim(client, &oncedv1.BeginRequest{Namespace: "n", Key: "k"}, Retry, &oncedv1.Claim{
		FencingToken: 7, LockTtl: durationpb.New(10 * time.Second), Waited: durationpb.New(3 * time.Second),
		Checkpoint: &oncedv1.Checkpoint{Sequence: 7, Data: []byte("half")},
	}, 100*time.Second), clock
}

func TestALockEndsAtSentPlusWaitedPlusTTL(t *testing.T) {
	claim, clock := aClaim(t, "127.0.0.1:1")
	clock.set(112 * time.Second)
	if claim.WhyLost() != 0 || claim.LockLeft() != time.Second {
		t.Errorf("%v, %v left", claim.WhyLost(), claim.LockLeft())
	}
	clock.set(113 * time.Second)
	if claim.WhyLost() != LockEnded || claim.LockLeft() != 0 {
		t.Errorf("%v, %v left", claim.WhyLost(), claim.LockLeft())
	}
}

func TestTheWorkIsToldWhenTheMachineSleptPastTheLock(t *testing.T) {
	claim, clock := aClaim(t, "127.0.0.1:1")
	ctx, cancel := context.WithCancelCause(t.Context())
	claim.onLoss(cancel)
	defer claim.keep()()
	clock.set(500 * time.Second)
	select {
	case <-ctx.Done():
	case <-time.After(hangs):
		t.Fatal("it was not told")
	}
	var lost *ClaimLostError
	if !errors.As(context.Cause(ctx), &lost) || lost.Lost != LockEnded {
		t.Error(context.Cause(ctx))
	}
}

func TestARenewalCountsFromWhenItWasSentAndNeverShortensTheLock(t *testing.T) {
	server := startFake(t)
	claim, clock := aClaim(t, server.address)
	for _, step := range []struct{ sent, expires, ends time.Duration }{{105, 10, 115}, {106, 5, 115}, {107, 30, 137}} {
		server.renew = func(context.Context, *oncedv1.RenewRequest) (*oncedv1.RenewResponse, error) {
			clock.set((step.sent + 2) * time.Second) // The answer takes its time.
			return &oncedv1.RenewResponse{LockExpiresIn: durationpb.New(step.expires * time.Second)}, nil
		}
		clock.set(step.sent * time.Second)
		if err := claim.renew(t.Context(), patience{total: hangs, attempt: hangs}, nil); err != nil {
			t.Fatal(err)
		}
		if claim.ends != step.ends*time.Second {
			t.Errorf("sent at %d for %d it ends at %v", step.sent, step.expires, claim.ends)
		}
	}
}

func TestWhatTheServerSaysOfALossStandsAndALockEndedMayBecomeATakeover(t *testing.T) {
	server := startFake(t)
	server.renew = func(context.Context, *oncedv1.RenewRequest) (*oncedv1.RenewResponse, error) {
		return nil, refusal(codes.NotFound, "RECORD_NOT_FOUND")
	}
	claim, clock := aClaim(t, server.address)
	clock.set(200 * time.Second)
	if claim.WhyLost() != LockEnded {
		t.Fatal(claim.WhyLost())
	}
	if err := claim.SaveCheckpoint(t.Context(), nil); reasonOf(err) != "RECORD_NOT_FOUND" {
		t.Fatal(err)
	}
	claim.lose(GivenBack)
	if claim.WhyLost() != TakenOver {
		t.Error(claim.WhyLost())
	}
}

func TestCheckpointsAreCountedOnFromTheOneHandedOver(t *testing.T) {
	server := startFake(t)
	claim, _ := aClaim(t, server.address)
	if at, there := claim.Checkpoint(); !there || string(at) != "half" {
		t.Errorf("%q", at)
	}
	for range 2 {
		if err := claim.SaveCheckpoint(t.Context(), []byte("on")); err != nil {
			t.Fatal(err)
		}
	}
	for i, asked := range server.asked("Renew") {
		if sequence := asked.(*oncedv1.RenewRequest).GetCheckpoint().GetSequence(); sequence != uint64(8+i) {
			t.Errorf("%d: %d", i, sequence)
		}
	}
}

func TestRenewalsGoOnAfterTheLockHasEndedUntilSomebodyTookOver(t *testing.T) {
	server := startFake(t)
	server.begin = func(context.Context, *oncedv1.BeginRequest) (*oncedv1.BeginResponse, error) {
		return granted(7, 400*time.Millisecond), nil
	}
	takenOver := make(chan struct{})
	server.renew = func(context.Context, *oncedv1.RenewRequest) (*oncedv1.RenewResponse, error) {
		select {
		case <-takenOver:
			return nil, refusal(codes.Aborted, "CLAIM_LOST")
		default:
			return nil, refusal(codes.Unavailable, "STORE_UNAVAILABLE")
		}
	}
	client := connect(t, server.address)
	_, err := Run(t.Context(), client, "k", func(ctx context.Context, claim *Claim) (int, error) {
		<-ctx.Done()
		if claim.WhyLost() != LockEnded {
			t.Errorf("lost, as %v", claim.WhyLost())
		}
		server.until(t, "Renew", len(server.asked("Renew"))+2)
		close(takenOver)
		for claim.WhyLost() != TakenOver {
			time.Sleep(time.Millisecond)
		}
		return 1, nil
	})
	if !errors.Is(err, ErrClaimLost) {
		t.Error(err)
	}
	if sent := len(server.asked("Complete")) + len(server.asked("Release")); sent != 0 {
		t.Errorf("%d calls were sent for a claim that was taken over", sent)
	}
}

func TestReasonsAreCutBetweenCharacters(t *testing.T) {
	if cut := head("aöö", 4); cut != "aö" {
		t.Errorf("%q", cut)
	}
	if whole := head("short", reasonMaxBytes); whole != "short" {
		t.Errorf("%q", whole)
	}
}
