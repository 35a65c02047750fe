package onced

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"onced.dev/go/onced/internal/testserver"
	oncedv1 "onced.dev/go/onced/v1"
)

func TestABeginThatASessionMayHaveCarriedOutIsGivenBack(t *testing.T) {
	server := startFake(t)
	server.session = func(stream sessionServer) error {
		_ = stream.SendHeader(nil)
		_, _ = stream.Recv()
		return nil // The claim is made, and its answer is never heard.
	}
	server.begin = func(_ context.Context, request *oncedv1.BeginRequest) (*oncedv1.BeginResponse, error) {
		if request.GetWait() != nil {
			return nil, refusal(codes.PermissionDenied, "ACCESS_DENIED")
		}
		return granted(7, time.Minute), nil
	}
	client, _ := inSessionOf(t, server.address, waiting)
	if _, err := Run(t.Context(), client, "k", mustNotRun(t)); reasonOf(err) != "ACCESS_DENIED" {
		t.Error(err)
	}
	if release := server.until(t, "Release", 1)[0].(*oncedv1.ReleaseRequest); release.GetFencingToken() != 7 {
		t.Errorf("%v", release)
	}
}

func TestACallerThatGivesUpOnASessionGivesBackTheClaimThatItNeverHeardOf(t *testing.T) {
	server := startFake(t)
	begun := make(chan struct{}, 1)
	server.session = server.carries(func(request *oncedv1.SessionRequest) ([]*oncedv1.SessionResponse, error) {
		if begin := request.GetBegin(); begin != nil && begin.GetWait() == nil {
			return answerTo(request, &oncedv1.SessionResponse{Answer: &oncedv1.SessionResponse_Begin{Begin: granted(7, time.Minute)}}), nil
		}
		if request.GetBegin() != nil {
			begun <- struct{}{}
		}
		return nil, nil
	})
	client, _ := inSessionOf(t, server.address, waiting)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-begun
		cancel()
	}()
	if _, err := Run(ctx, client, "k", mustNotRun(t)); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if release := server.until(t, "Release", 1)[0].(*oncedv1.ReleaseRequest); release.GetFencingToken() != 7 {
		t.Errorf("%v", release)
	}
}

func TestARunThatMayFailOpenIsNotHeldUpByASessionThatHangs(t *testing.T) {
	hanging, server := startFake(t), startFake(t)
	hanging.session = hanging.carries(silent)
	client, _ := inSessionOf(t, hanging.address+","+server.address, waiting)
	started := time.Now()
	// Half of it is for each server.
	done, err := Run(t.Context(), client, "k", returns(1), FailOpen(400*time.Millisecond))
	if err != nil || !done.Protected || len(hanging.asked("Session")) == 0 {
		t.Errorf("%+v, %v, after %v", done, err, time.Since(started))
	}
}

func TestTheEndOfASessionIsNoAnswerThatKeepsARunFromFailingOpen(t *testing.T) {
	server := startFake(t)
	server.session = func(stream sessionServer) error {
		_ = stream.SendHeader(nil)
		_, _ = stream.Recv()
		return refusal(codes.Unauthenticated, "CREDENTIALS_EXPIRED")
	}
	server.begin = func(context.Context, *oncedv1.BeginRequest) (*oncedv1.BeginResponse, error) {
		return nil, status.Error(codes.Unavailable, "no backend")
	}
	client, _ := inSessionOf(t, server.address, waiting)
	if done, err := Run(t.Context(), client, "k", returns(1), FailOpen(300*time.Millisecond)); err != nil || done.Protected {
		t.Errorf("%+v, %v", done, err)
	}
}

func TestOnlyRefusedCredentialsInASessionKeepARunFromFailingOpen(t *testing.T) {
	for _, test := range []struct {
		answer error
		opens  bool
	}{
		{refusal(codes.Unauthenticated, "CREDENTIALS_INVALID"), false},
		{refusal(codes.Unavailable, "DRAINING"), true},
		{refusal(codes.DeadlineExceeded, "TIMEOUT"), true},
	} {
		t.Run(reasonOf(refusalOf(status.Convert(test.answer))), func(t *testing.T) {
			server := startFake(t)
			server.session = server.carries(refuses(test.answer))
			started := time.Now()
			server.begin = func(context.Context, *oncedv1.BeginRequest) (*oncedv1.BeginResponse, error) {
				if !test.opens && time.Since(started) > 1500*time.Millisecond {
					return nil, refusal(codes.PermissionDenied, "ACCESS_DENIED") // So that the run ends.
				}
				return nil, status.Error(codes.Unavailable, "no backend")
			}
			client, _ := inSessionOf(t, server.address, waiting)
			done, err := Run(t.Context(), client, "k", returns(1), FailOpen(time.Second))
			if test.opens && (err != nil || done.Protected) || !test.opens && reasonOf(err) != "ACCESS_DENIED" {
				t.Errorf("%+v, %v", done, err)
			}
		})
	}
}

func TestACrowdOfRunsInSessionsOfARealServerRunsEachKeyOnce(t *testing.T) {
	const runs, keys = 300, 100
	client := connect(t, testserver.Start(t).Address)
	var ran atomic.Int64
	var callers sync.WaitGroup
	for i := range runs {
		callers.Add(1)
		go func() {
			defer callers.Done()
			done, err := Run(t.Context(), client, fmt.Sprint(i%keys), func(context.Context, *Claim) (int, error) {
				ran.Add(1)
				time.Sleep(200 * time.Millisecond) // The others wait for it.
				return i % keys, nil
			})
			if err != nil || done.Value != i%keys {
				t.Errorf("%d: %+v, %v", i, done, err)
			}
		}()
	}
	callers.Wait()
	if ran.Load() != keys {
		t.Errorf("%d keys ran %d times", keys, ran.Load())
	}
	for _, line := range client.transport.servers[0].lines {
		if calls, _, stands := line.state(); !stands || calls != 0 {
			t.Errorf("a session stands: %v, and %d calls are said to be under way", stands, calls)
		}
	}
}
