package onced

import (
	"context"
	"sync/atomic"
	"testing"
	"time"
)

// A handClock is moved by hand.
type handClock struct{ now atomic.Int64 }

func (c *handClock) set(now time.Duration) { c.now.Store(int64(now)) }

func (c *handClock) read() moment { return moment(c.now.Load()) }

func TestTimeElapsedIsTheLargerOfTwoAndNeverGoesBack(t *testing.T) {
	var monotonic, wall time.Duration
	clock := elapsedClock(func() time.Duration { return monotonic }, func() time.Duration { return wall })
	for _, step := range []struct{ monotonic, wall, want time.Duration }{
		{1, 1, 1},
		{2, 9, 9},   // The machine was suspended.
		{3, -50, 9}, // The wall clock was set back.
		{10, -50, 10},
	} {
		monotonic, wall = step.monotonic, step.wall
		if now := clock(); now != step.want {
			t.Errorf("%+v: %v", step, now)
		}
	}
}

func TestTheClocksOfTheSystemGoOn(t *testing.T) {
	for name, clock := range map[string]clock{"system": systemClock(), "elapsed": elapsedSinceNow()} {
		before := clock()
		if !clock.sleepUntil(t.Context(), before+time.Millisecond) || clock() < before+time.Millisecond {
			t.Errorf("%s stands still", name)
		}
	}
}

func TestASleepEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if clock(new(handClock).read).sleepUntil(ctx, time.Hour) {
		t.Error("it slept")
	}
}

func TestJitterIsBetweenHalfAndAll(t *testing.T) {
	for range 1000 {
		if some := jittered(time.Second); some < time.Second/2 || some > time.Second {
			t.Fatal(some)
		}
	}
}

func TestAnOwnerIsShortAndPrintable(t *testing.T) {
	if owner := printable("a\nb\x00c\xff" + string(make([]rune, 10))); owner != "abc" {
		t.Errorf("%q", owner)
	}
	if owner := defaultOwner(); owner == "" || len([]rune(owner)) > ownerMaxRunes {
		t.Errorf("%q", owner)
	}
}
