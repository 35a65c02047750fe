package dev.onced.client;

import com.google.protobuf.Duration;
import com.google.protobuf.Timestamp;
import java.time.Instant;
import java.util.concurrent.TimeUnit;

/** Times, as the protocol has them. */
final class Wire {
    private Wire() {}

    static Duration duration(long nanos) {
        long second = TimeUnit.SECONDS.toNanos(1);
        return Duration.newBuilder().setSeconds(nanos / second).setNanos((int) (nanos % second)).build();
    }

    /** Unset and negative are zero. */
    static long nanos(Duration duration) {
        return Math.max(0, nanos(java.time.Duration.ofSeconds(duration.getSeconds(), duration.getNanos())));
    }

    /** Of a time that is too long to count: the longest. */
    static long nanos(java.time.Duration duration) {
        try {
            return duration.toNanos();
        } catch (ArithmeticException tooLong) {
            return duration.isNegative() ? Long.MIN_VALUE : Long.MAX_VALUE;
        }
    }

    static Instant instant(Timestamp time) {
        return Instant.ofEpochSecond(time.getSeconds(), time.getNanos());
    }

    /** Two times together, at most the longest there is. */
    static long plus(long nanos, long more) {
        long sum = nanos + more;
        return sum < nanos && more > 0 ? Long.MAX_VALUE : sum;
    }

    /** A time for people, who do not count nanoseconds. */
    static String shown(long nanos) {
        long millis = TimeUnit.NANOSECONDS.toMillis(nanos);
        return millis < 1_000 ? millis + " ms" : (millis + 50) / 100 / 10.0 + " s";
    }
}
