package onced_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"onced.dev/go/onced"
	"onced.dev/go/onced/internal/testserver"
	oncedv1 "onced.dev/go/onced/v1"
)

// Whatever hangs fails after so long.
const hangs = 30 * time.Second

func TestMain(m *testing.M) {
	server, err := testserver.Launch()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	_ = os.Setenv("ONCED_SERVER", server.Address) // Its name is not empty.
	code := m.Run()
	server.Kill()
	os.Exit(code)
}

func connect(t *testing.T, servers string, options ...onced.Option) *onced.Client {
	t.Helper()
	client, err := onced.New(servers, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), hangs)
		defer cancel()
		if err := client.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return client
}

func bounded(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), hangs)
	t.Cleanup(cancel)
	return ctx
}

func receive[T any](t *testing.T, from <-chan T) T {
	t.Helper()
	select {
	case value := <-from:
		return value
	case <-time.After(hangs):
		t.Fatal("nothing came")
		panic("unreachable")
	}
}

func returns[T any](value T) func(context.Context, *onced.Claim) (T, error) {
	return func(context.Context, *onced.Claim) (T, error) { return value, nil }
}

func fails(err error) func(context.Context, *onced.Claim) (int, error) {
	return func(context.Context, *onced.Claim) (int, error) { return 0, err }
}

func mustNotRun(t *testing.T) func(context.Context, *onced.Claim) (int, error) {
	return func(context.Context, *onced.Claim) (int, error) {
		t.Error("the work ran")
		return 0, nil
	}
}

func TestDuplicatesOfOneKeyRunItOnceAndGetTheSame(t *testing.T) {
	client := connect(t, "")
	var mu sync.Mutex
	ran, ranHere := 0, 0
	var callers sync.WaitGroup
	for range 20 {
		callers.Add(1)
		go func() {
			defer callers.Done()
			done, err := onced.Run(bounded(t), client, t.Name(), func(context.Context, *onced.Claim) (string, error) {
				mu.Lock()
				defer mu.Unlock()
				ran++
				return "paid", nil
			})
			if err != nil || done.Value != "paid" || !done.Protected || done.Attempt != 1 || done.FencingToken == 0 {
				t.Errorf("%+v, %v", done, err)
			}
			mu.Lock()
			defer mu.Unlock()
			if done.RanHere {
				ranHere++
			}
		}()
	}
	callers.Wait()
	if ran != 1 || ranHere != 1 {
		t.Errorf("the work ran %d times, and %d callers say that it ran there", ran, ranHere)
	}
}

func TestAnOutcomeTellsWhoStoredItAndUntilWhen(t *testing.T) {
	client := connect(t, "", onced.WithOwner("anna@till-3"))
	before := time.Now().Add(-time.Minute)
	if _, err := onced.Run(bounded(t), client, t.Name(), returns(1), onced.Retention(48*time.Hour)); err != nil {
		t.Fatal(err)
	}
	done, err := onced.Run(bounded(t), client, t.Name(), mustNotRun(t))
	if err != nil || done.RanHere || done.Owner != "anna@till-3" || done.CompletedAt.Before(before) {
		t.Errorf("%+v, %v", done, err)
	}
	if kept := done.ExpiresAt.Sub(done.CompletedAt); kept < 47*time.Hour {
		t.Errorf("it is kept for %v", kept)
	}
}

func TestAFinalErrorIsThatOfAllCallers(t *testing.T) {
	client := connect(t, "")
	for _, ranHere := range []bool{true, false} {
		_, err := onced.Run(bounded(t), client, t.Name(), fails(fmt.Errorf("the bank: %w", onced.Final(codes.FailedPrecondition, "no funds"))))
		var final *onced.FinalError
		if !errors.As(err, &final) || !errors.Is(err, onced.ErrFinal) {
			t.Fatal(err)
		}
		if final.Code != codes.FailedPrecondition || final.Message != "no funds" || final.Completion.RanHere != ranHere {
			t.Errorf("%+v", final)
		}
	}
}

func TestFailuresGoByTheRule(t *testing.T) {
	client := connect(t, "")
	broke := errors.New("the line broke")
	for name, test := range map[string]struct {
		err     error
		rule    onced.Rule
		options []onced.RunOption
	}{
		"plain":              {broke, onced.Retry, nil},
		"plain, by option":   {broke, onced.InDoubt, []onced.RunOption{onced.OnFailure(onced.InDoubt)}},
		"retry":              {onced.Fail(onced.Retry, broke), onced.Retry, []onced.RunOption{onced.OnFailure(onced.InDoubt)}},
		"in doubt":           {onced.Fail(onced.InDoubt, broke), onced.InDoubt, nil},
		"wrapped":            {fmt.Errorf("at the bank: %w", onced.Fail(onced.InDoubt, broke)), onced.InDoubt, nil},
		"joined":             {errors.Join(errors.New("one"), onced.Fail(onced.InDoubt, broke)), onced.InDoubt, nil},
		"of another run":     {&onced.FailedError{Err: onced.Fail(onced.InDoubt, broke)}, onced.Retry, nil},
		"final without code": {onced.Final(codes.OK, "fine"), onced.InDoubt, nil},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := onced.Run(bounded(t), client, t.Name(), fails(test.err), test.options...)
			var failed *onced.FailedError
			if !errors.As(err, &failed) || !errors.Is(err, onced.ErrFailed) {
				t.Fatal(err)
			}
			if failed.Rule != test.rule || !failed.Released || failed.Attempt != 1 {
				t.Errorf("%+v", failed)
			}
			if name != "final without code" && !errors.Is(err, broke) {
				t.Errorf("%v does not lead to its cause", err)
			}
			_, err = onced.Run(bounded(t), client, t.Name(), returns(2))
			var inDoubt *onced.InDoubtError
			if errors.As(err, &inDoubt) != (test.rule == onced.InDoubt) {
				t.Errorf("afterwards: %v", err)
			}
			if inDoubt != nil && (inDoubt.FencingToken != failed.FencingToken || !errors.Is(err, onced.ErrInDoubt)) {
				t.Errorf("%+v", inDoubt)
			}
		})
	}
}

func TestAPanicGoesOnOnceTheKeyWasGivenBack(t *testing.T) {
	client := connect(t, "")
	func() {
		defer func() {
			if panicked := recover(); panicked != "out of range" {
				t.Errorf("it panicked with %v", panicked)
			}
		}()
		_, _ = onced.Run(bounded(t), client, t.Name(), func(context.Context, *onced.Claim) (int, error) {
			panic("out of range")
		})
	}()
	done, err := onced.Run(bounded(t), client, t.Name(), returns(2), onced.Wait(0))
	if err != nil || done.Attempt != 2 {
		t.Errorf("%+v, %v", done, err)
	}
}

type panics struct{}

func (panics) MarshalJSON() ([]byte, error) { panic("out of range") }

func TestAPanicOfTheCodecLeavesWhatWasDoneInDoubt(t *testing.T) {
	client := connect(t, "")
	func() {
		defer func() {
			if panicked := recover(); panicked != "out of range" {
				t.Errorf("it panicked with %v", panicked)
			}
		}()
		_, _ = onced.Run(bounded(t), client, t.Name(), returns(panics{}))
	}()
	if _, err := onced.Run(bounded(t), client, t.Name(), mustNotRun(t)); !errors.Is(err, onced.ErrInDoubt) {
		t.Error(err)
	}
}

func TestWorkThatEndsItsGoroutineGivesTheKeyBackByTheRuleOfTheTime(t *testing.T) {
	client := connect(t, "")
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = onced.Run(bounded(t), client, t.Name(), func(_ context.Context, claim *onced.Claim) (int, error) {
			claim.SetOnFailure(onced.InDoubt)
			runtime.Goexit()
			return 0, nil
		})
		t.Error("the goroutine went on")
	}()
	receive(t, ended)
	if _, err := onced.Run(bounded(t), client, t.Name(), mustNotRun(t)); !errors.Is(err, onced.ErrInDoubt) {
		t.Error(err)
	}
}

func TestWorkWhoseCallerHasLeftKeepsItsClaimUntilItEnds(t *testing.T) {
	client := connect(t, "")
	ctx, cancel := context.WithCancel(bounded(t))
	done, err := onced.Run(ctx, client, t.Name(), func(ctx context.Context, claim *onced.Claim) (string, error) {
		cancel()
		<-ctx.Done()
		_, err := onced.Run(bounded(t), client, t.Name(), mustNotRun(t), onced.Wait(0))
		var held *onced.InProgressError
		if !errors.As(err, &held) || !errors.Is(err, onced.ErrInProgress) || held.Attempt != 1 {
			t.Errorf("meanwhile: %v", err)
		}
		return "charged", nil
	})
	if err != nil || done.Value != "charged" {
		t.Fatalf("%+v, %v", done, err)
	}
	done, err = onced.Run(bounded(t), client, t.Name(), returns("charged twice"))
	if err != nil || done.RanHere || done.Value != "charged" {
		t.Errorf("%+v, %v", done, err)
	}
}

func TestWorkThatStopsWhenItsCallerLeavesGivesTheKeyBack(t *testing.T) {
	client := connect(t, "")
	ctx, cancel := context.WithCancel(bounded(t))
	_, err := onced.Run(ctx, client, t.Name(), func(ctx context.Context, _ *onced.Claim) (int, error) {
		cancel()
		<-ctx.Done()
		return 0, ctx.Err()
	})
	var failed *onced.FailedError
	if !errors.As(err, &failed) || !failed.Released || !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestDetachedWorkIsNotToldThatItsCallerHasLeft(t *testing.T) {
	client := connect(t, "")
	ctx, cancel := context.WithCancel(bounded(t))
	_, err := onced.Run(ctx, client, t.Name(), func(inner context.Context, claim *onced.Claim) (int, error) {
		cancel()
		if _, bounded := inner.Deadline(); inner.Err() != nil || bounded || onced.ClaimFrom(inner) != claim {
			t.Errorf("the context of the work: %v", inner)
		}
		return 1, nil
	}, onced.Detached())
	if err != nil {
		t.Error(err)
	}
}

func TestTheContextOfWorkEndsWhenItsClaimIsTakenOver(t *testing.T) {
	client := connect(t, "")
	admin := administer(t, os.Getenv("ONCED_SERVER"))
	_, err := onced.Run(bounded(t), client, t.Name(), func(ctx context.Context, claim *onced.Claim) (int, error) {
		_, err := admin.Delete(ctx, &oncedv1.DeleteRequest{Namespace: "default", Key: t.Name(), FencingToken: claim.FencingToken(), Force: true})
		if err != nil {
			t.Error(err)
		}
		receive(t, claim.Lost())
		var lost *onced.ClaimLostError
		if cause := context.Cause(ctx); !errors.As(cause, &lost) || lost.Lost != onced.TakenOver || ctx.Err() == nil {
			t.Errorf("the cause is %v", cause)
		}
		return 1, nil
	}, onced.LockTTL(2*time.Second))
	var lost *onced.ClaimLostError
	if !errors.As(err, &lost) || !errors.Is(err, onced.ErrClaimLost) || lost.Lost != onced.TakenOver {
		t.Error(err)
	}
}

func TestAClaimNamesItsKey(t *testing.T) {
	for _, options := range [][]onced.RunOption{nil, {onced.Namespace("shop")}} {
		_, err := onced.Run(bounded(t), connect(t, ""), t.Name(), func(_ context.Context, claim *onced.Claim) (int, error) {
			if claim.Key() != t.Name() || (claim.Namespace() == "shop") != (options != nil) || (claim.Namespace() == "default") != (options == nil) {
				t.Errorf("it is of %s in %s", claim.Key(), claim.Namespace())
			}
			return 1, nil
		}, options...)
		if err != nil {
			t.Error(err)
		}
	}
}

func TestACheckpointIsHandedToTheNextClaim(t *testing.T) {
	client := connect(t, "")
	_, err := onced.Run(bounded(t), client, t.Name(), func(ctx context.Context, claim *onced.Claim) (int, error) {
		if _, there := claim.Checkpoint(); there {
			t.Error("there is one already")
		}
		for _, at := range []string{"a third", "half"} {
			if err := claim.SaveCheckpoint(ctx, []byte(at)); err != nil {
				t.Error(err)
			}
		}
		return 0, errors.New("the line broke")
	})
	if !errors.Is(err, onced.ErrFailed) {
		t.Fatal(err)
	}
	_, err = onced.Run(bounded(t), client, t.Name(), func(ctx context.Context, claim *onced.Claim) (int, error) {
		if at, there := claim.Checkpoint(); !there || string(at) != "half" {
			t.Errorf("%q, %v", at, there)
		}
		return 1, claim.SaveCheckpoint(ctx, []byte("two thirds"))
	})
	if err != nil {
		t.Error(err)
	}
}

func TestAKeyUsedForAnotherRequestIsRefused(t *testing.T) {
	client := connect(t, "")
	one, err := onced.FingerprintJSON(map[string]any{"amount": 1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := onced.Run(bounded(t), client, t.Name(), returns(1), onced.Fingerprint(one)); err != nil {
		t.Fatal(err)
	}
	_, err = onced.Run(bounded(t), client, t.Name(), mustNotRun(t), onced.Fingerprint(onced.FingerprintBytes([]byte("another"))))
	var refusal *onced.Refusal
	if !errors.Is(err, onced.ErrNotBegun) || !errors.As(err, &refusal) || refusal.Reason != "FINGERPRINT_MISMATCH" {
		t.Error(err)
	}
}

func TestAValueThatCannotBeStoredIsInDoubt(t *testing.T) {
	server := testserver.Start(t, "--defaults-max-outcome-bytes", "2KiB")
	client := connect(t, server.Address)
	for name, run := range map[string]func(key string) error{
		"no JSON": func(key string) error {
			_, err := onced.Run(bounded(t), client, key, returns(func() {}))
			return err
		},
		"no text": func(key string) error {
			_, err := onced.Run(bounded(t), client, key, fails(onced.Final(codes.NotFound, "\xff")))
			return err
		},
		"too large": func(key string) error {
			_, err := onced.Run(bounded(t), client, key, returns(make([]byte, 4096)), onced.Using(onced.Bytes))
			return err
		},
	} {
		var failed *onced.FailedError
		var unstorable *onced.UnstorableError
		if err := run(name); !errors.As(err, &failed) || failed.Rule != onced.InDoubt || !failed.Released || !errors.As(err, &unstorable) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAnOutcomeOfAnotherTypeIsUnreadable(t *testing.T) {
	client := connect(t, "")
	if _, err := onced.Run(bounded(t), client, t.Name(), returns("text"), onced.Using(onced.Text)); err != nil {
		t.Fatal(err)
	}
	_, err := onced.Run(bounded(t), client, t.Name(), mustNotRun(t))
	var unreadable *onced.UnreadableError
	if !errors.As(err, &unreadable) || !errors.Is(err, onced.ErrUnreadable) || string(unreadable.Outcome.GetResponse()) != "text" {
		t.Error(err)
	}
}

func TestClosingWaitsForWorkAndItsOutcome(t *testing.T) {
	client, err := onced.New("")
	if err != nil {
		t.Fatal(err)
	}
	closed := make(chan error, 1)
	done, err := onced.Run(bounded(t), client, t.Name(), func(ctx context.Context, _ *onced.Claim) (string, error) {
		impatient, cancel := context.WithCancel(context.Background())
		cancel()
		if err := client.Close(impatient); !errors.Is(err, context.Canceled) {
			t.Errorf("closing without patience: %v", err)
		}
		go func() { closed <- client.Close(bounded(t)) }()
		if _, err := onced.Run(ctx, client, "another", mustNotRun(t)); !errors.Is(err, onced.ErrClosed) || !errors.Is(err, onced.ErrNotBegun) {
			t.Errorf("a run of a closed client: %v", err)
		}
		return "done", nil
	})
	if err != nil || done.Value != "done" {
		t.Errorf("%+v, %v", done, err)
	}
	if err := receive(t, closed); err != nil {
		t.Error(err)
	}
}

func TestClosingEndsAWait(t *testing.T) {
	client := connect(t, "")
	waits, err := onced.New("")
	if err != nil {
		t.Fatal(err)
	}
	_, err = onced.Run(bounded(t), client, t.Name(), func(context.Context, *onced.Claim) (int, error) {
		ended := make(chan error, 1)
		go func() {
			_, err := onced.Run(bounded(t), waits, t.Name(), mustNotRun(t), onced.WaitForever())
			ended <- err
		}()
		// Whether it waits yet or not, it ends so.
		if err := waits.Close(bounded(t)); err != nil {
			t.Error(err)
		}
		if err := receive(t, ended); !errors.Is(err, onced.ErrClosed) {
			t.Error(err)
		}
		return 1, nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestWithoutAServerWorkRunsOnlyIfThatWasSaid(t *testing.T) {
	server := testserver.Start(t)
	client := connect(t, server.Address, onced.WithTimeout(time.Second))
	server.Kill()
	_, err := onced.Run(bounded(t), client, "k", mustNotRun(t), onced.Wait(0))
	var unavailable *onced.UnavailableError
	if !errors.As(err, &unavailable) || !errors.Is(err, onced.ErrNotBegun) {
		t.Errorf("without a word: %v", err)
	}
	done, err := onced.Run(bounded(t), client, "k", func(ctx context.Context, claim *onced.Claim) (int, error) {
		if claim.Namespace() != "shop" || claim.Key() != "k" {
			t.Errorf("it is of %s in %s", claim.Key(), claim.Namespace())
		}
		if claim.Protected() || claim.FencingToken() != 0 || claim.Attempt() != 0 || claim.WhyLost() != 0 {
			t.Errorf("%+v", claim)
		}
		return 1, claim.SaveCheckpoint(ctx, []byte("half"))
	}, onced.FailOpen(100*time.Millisecond), onced.Namespace("shop"))
	if err != nil || done.Value != 1 || done.Protected || !done.RanHere || client.Unprotected() != 1 {
		t.Errorf("%+v, %v, %d", done, err, client.Unprotected())
	}
}
