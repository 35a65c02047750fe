package dev.onced.client;

import java.time.Instant;

/**
 * The key has its outcome.
 *
 * @param value what the work returned, here or in another call
 * @param ranHere true if the work ran in this call; false if this is the outcome of another one
 * @param isProtected false if the work ran without a claim, because the caller failed open: nothing is stored then
 * @param owner who completed it
 * @param attempt the attempt that completed; 0 if not protected
 * @param token the fencing token that completed, an unsigned number; 0 if not protected
 * @param completedAt when it was stored, by the storing server's clock; null if not protected
 * @param expiresAt until when, at least, it can be read; null if not protected
 * @param <T> the type of the value
 */
public record Done<T>(
        T value,
        boolean ranHere,
        boolean isProtected,
        String owner,
        long attempt,
        long token,
        Instant completedAt,
        Instant expiresAt) {
}
