package dev.onced.client;

import io.grpc.Metadata;
import io.grpc.Status;
import java.util.OptionalLong;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;

/**
 * What is sent again, and when. Every call of onced may be repeated with the same arguments, so the only questions are
 * whether it would help, and how long to wait.
 */
final class Retry {
    /** The wait before the second round over the servers, before jitter. */
    static final long FIRST_WAIT = TimeUnit.MILLISECONDS.toNanos(50);
    /** The longest wait between rounds, before jitter. */
    static final long LONGEST_WAIT = TimeUnit.SECONDS.toNanos(2);

    private static final Metadata.Key<String> PUSHBACK =
            Metadata.Key.of("grpc-retry-pushback-ms", Metadata.ASCII_STRING_MARSHALLER);

    private Retry() {}

    /** The time in nanoseconds that the server asks for before the same call; none if it would fail again. */
    static OptionalLong advice(Status status, Metadata trailers) {
        if (!worthRepeating(status, Refusal.of(status, trailers).reason() != null)) {
            return OptionalLong.empty();
        }
        String pushback = trailers.get(PUSHBACK);
        if (pushback == null) {
            return OptionalLong.of(Refusal.retryDelay(status, trailers));
        }
        // By gRPC's retry design, a pushback that is no number of milliseconds forbids the retry.
        if (!pushback.matches("[0-9]{1,12}")) {
            return OptionalLong.empty();
        }
        return OptionalLong.of(TimeUnit.MILLISECONDS.toNanos(Long.parseLong(pushback)));
    }

    private static boolean worthRepeating(Status status, boolean byTheServer) {
        return switch (status.getCode()) {
            case UNAVAILABLE, DEADLINE_EXCEEDED -> true;
            // Broken connections come as these codes, without a reason of the server's.
            case CANCELLED, UNKNOWN -> !byTheServer;
            default -> !byTheServer && isBroken(status.getCause(), String.valueOf(status.getDescription()));
        };
    }

    /** Whether grpc made up the status for a stream that was reset, or a connection that broke in a message. */
    static boolean isBroken(Throwable cause, String text) {
        return cause != null
                || text.contains("HTTP/2 error code")
                || text.contains("end-of-stream mid-frame")
                || text.contains("unexpected EOS");
    }

    /**
     * How long to wait before attempt number {@code attempts} (the first is 0). A server that was not tried in this
     * round is tried at once: its neighbour's pushback does not bind it.
     *
     * @param pushback the longest that a server of this round asked for
     */
    static long pause(int attempts, int servers, long pushback) {
        if (attempts % servers != 0) {
            return 0;
        }
        int round = Math.min(attempts / servers - 1, 16);
        long backoff = jittered(Math.min(FIRST_WAIT << round, LONGEST_WAIT));
        // Jitter goes on top of a pushback: less than it would be refused again.
        return pushback == 0 ? backoff : Math.max(backoff, Wire.plus(pushback, jittered(pushback / 8)));
    }

    /** Between half of a time and all of it. */
    static long jittered(long nanos) {
        return (long) (nanos * (0.5 + ThreadLocalRandom.current().nextDouble() / 2));
    }
}
