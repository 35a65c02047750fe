package dev.onced.client;

import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import java.util.function.LongSupplier;

/**
 * The one place that reads time. A holder counts its lock on this clock, so it must go on while the machine is
 * suspended: a holder that slept must not think that its lock still lives.
 */
@FunctionalInterface
interface HolderClock {
    /** Nanoseconds since the clock's own start. Never goes backwards; only differences mean anything. */
    long nanos();

    /** The system's. Java has no clock that counts the time suspended, so wall time stands in for it. */
    static HolderClock system() {
        return larger(System::nanoTime, () -> TimeUnit.MILLISECONDS.toNanos(System.currentTimeMillis()));
    }

    /** The larger of two elapsed times. Wall time may be set back, and time that goes back would lengthen locks. */
    static HolderClock larger(LongSupplier monotonic, LongSupplier wall) {
        long monotonicStart = monotonic.getAsLong();
        long wallStart = wall.getAsLong();
        var latest = new AtomicLong();
        return () -> {
            long elapsed = Math.max(monotonic.getAsLong() - monotonicStart, wall.getAsLong() - wallStart);
            return latest.accumulateAndGet(elapsed, Math::max);
        };
    }
}
