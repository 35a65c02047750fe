package dev.onced.client;

import dev.onced.v1.BeginRequest;
import java.time.Duration;
import java.util.Arrays;
import java.util.concurrent.CompletableFuture;

/** The right to do the work of a key, as the work gets it. Safe for many threads. */
public final class Claim {
    private final BeginRequest request;
    /** None if the run failed open. */
    private final Held held;

    Claim(BeginRequest request, Held held) {
        this.request = request;
        this.held = held;
    }

    /**
     * The namespace of the key.
     *
     * @return as the run was begun with
     */
    public String namespace() {
        return request.getNamespace();
    }

    /**
     * The key that the work is done for.
     *
     * @return as the run was begun with: behind a filter or an interceptor with a scope, the scope's digest, {@code :}, and
     *     what the header says
     */
    public String key() {
        return request.getKey();
    }

    /**
     * Strictly larger than that of every earlier claim of the key. Give it to the resources that the work changes, so that
     * they can refuse a stale holder.
     *
     * @return an unsigned number; 0 if not protected
     */
    public long token() {
        return held == null ? 0 : held.token();
    }

    /**
     * How many claims the key has had, this one included.
     *
     * @return 0 if not protected
     */
    public long attempt() {
        return held == null ? 0 : held.attempt();
    }

    /**
     * Whether there is a claim at all.
     *
     * @return false if the run failed open: then nothing keeps others from doing the work too
     */
    public boolean isProtected() {
        return held != null;
    }

    /**
     * The last checkpoint of an earlier claim of the key.
     *
     * @return null if there is none
     */
    public byte[] checkpoint() {
        return held != null && held.claim.hasCheckpoint() ? held.claim.getCheckpoint().getData().toByteArray() : null;
    }

    /**
     * The largest outcome that can be stored, everything included.
     *
     * @return in bytes; the largest number there is if the server sets no limit, or if not protected
     */
    public long maxOutcomeBytes() {
        long max = held == null ? 0 : held.claim.getMaxOutcomeBytes();
        return max <= 0 ? Long.MAX_VALUE : max;
    }

    /**
     * How long the claim lives without a renewal. Renewals happen by themselves.
     *
     * @return zero if not protected
     */
    public Duration lockTtl() {
        return Duration.ofNanos(held == null ? 0 : held.ttl);
    }

    /**
     * How long the lock lives for certain, on this machine's clock.
     *
     * @return zero once the claim is lost, and if not protected
     */
    public Duration lockLeft() {
        return Duration.ofNanos(held == null ? 0 : held.left());
    }

    /**
     * Whether the claim no longer protects the work, and why.
     *
     * @return null if it is not lost
     */
    public Lost lost() {
        return held == null ? null : held.lost();
    }

    /**
     * The signal to stop: ends when the claim is lost.
     *
     * @return a future of the caller's own; never ends if not protected
     */
    public CompletableFuture<Lost> whenLost() {
        return held == null ? new CompletableFuture<>() : held.whenLost.copy();
    }

    /**
     * Saves where the work is, for whoever takes over after a lapse or a release. Renews the lock as well. Of two saves
     * under way at once the later call wins. Goes nowhere if not protected.
     *
     * @param data at most 64 KiB
     * @throws CallException if it was refused, or no server answered in time. The work may go on, unless the claim is
     *     lost
     * @throws InterruptedException if the thread is interrupted meanwhile: it may be saved or not
     */
    public void saveCheckpoint(byte[] data) throws InterruptedException {
        Futures.await(saveCheckpointAsync(data));
    }

    /**
     * As {@link #saveCheckpoint}, without waiting for it.
     *
     * @param data at most 64 KiB
     * @return ends once it is saved, or with a {@link CallException}
     */
    public CompletableFuture<Void> saveCheckpointAsync(byte[] data) {
        return held == null
                ? CompletableFuture.completedFuture(null)
                : held.save(Arrays.copyOf(data, data.length));
    }
}
