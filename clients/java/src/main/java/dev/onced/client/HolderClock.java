package dev.onced.client;

import java.time.Instant;
import java.util.concurrent.TimeUnit;
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
        // Not in milliseconds: what they are rounded by would add up from reading to reading.
        return larger(System::nanoTime, () -> {
            Instant now = Instant.now();
            return TimeUnit.SECONDS.toNanos(now.getEpochSecond()) + now.getNano();
        });
    }

    /**
     * The larger of two elapsed times, from reading to reading. Wall time may be set, forward and back: what it was set
     * forward by is counted once, and what it was set back by is not made up for, which would make the clock stand still.
     */
    static HolderClock larger(LongSupplier monotonic, LongSupplier wall) {
        return new HolderClock() {
            private long lastMonotonic = monotonic.getAsLong();
            private long lastWall = wall.getAsLong();
            private long total;

            @Override
            public synchronized long nanos() {
                long monotonicNow = monotonic.getAsLong();
                long wallNow = wall.getAsLong();
                total += Math.max(0, Math.max(monotonicNow - lastMonotonic, wallNow - lastWall));
                lastMonotonic = monotonicNow;
                lastWall = wallNow;
                return total;
            }
        };
    }
}
