package onced

import (
	"context"
	"math/rand/v2"
	"sync/atomic"
	"time"
)

// The longest sleep between two looks at the clock. Timers stand still while a machine is suspended and the clock does
// not, so nothing sleeps much longer than it may be late.
const tick = 500 * time.Millisecond

// The longest time that is counted with: a century, of which some can be added up.
const longestTime = 100 * 365 * 24 * time.Hour

// A moment is a time on a clock, counted from a start of the clock's own: only differences mean anything.
type moment = time.Duration

// A clock is what locks are counted on. It goes on while the machine is suspended: a holder that slept must not think
// that its lock still lives. Time is read nowhere else.
type clock func() moment

// elapsedSinceNow is for systems without CLOCK_BOOTTIME.
func elapsedSinceNow() clock {
	monotonic := time.Now()
	wall := monotonic.Round(0)
	return elapsedClock(
		func() time.Duration { return time.Since(monotonic) },
		func() time.Duration { return time.Now().Round(0).Sub(wall) },
	)
}

// elapsedClock is the larger of monotonic and wall time elapsed.
func elapsedClock(monotonic, wall func() time.Duration) clock {
	var latest atomic.Int64
	return func() moment {
		now := int64(max(monotonic(), wall()))
		// Wall time may be set back; a clock that goes backward would lengthen locks.
		for {
			last := latest.Load()
			if now <= last {
				return moment(last)
			}
			if latest.CompareAndSwap(last, now) {
				return moment(now)
			}
		}
	}
}

// sleepUntil returns false if ctx ended before.
func (c clock) sleepUntil(ctx context.Context, until moment) bool {
	for {
		left := until - c()
		if left <= 0 {
			return ctx.Err() == nil
		}
		if !sleep(ctx, min(left, tick)) {
			return false
		}
	}
}

// sleep returns false if ctx ended before.
func sleep(ctx context.Context, pause time.Duration) bool {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// jittered is between half of a time and all of it.
func jittered(whole time.Duration) time.Duration {
	return time.Duration(float64(whole) * (0.5 + rand.Float64()/2))
}
