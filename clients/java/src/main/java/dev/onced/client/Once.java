package dev.onced.client;

import com.google.protobuf.ByteString;
import dev.onced.v1.BeginRequest;
import java.time.Duration;
import java.util.Objects;
import java.util.concurrent.CompletableFuture;

/**
 * What is to be run once for a key, and how. Made by {@link Onced#once}; each run is an attempt of its own.
 *
 * <p>A run is one of:
 *
 * <ul>
 *   <li>{@code run}: does the work in the thread that calls, which waits meanwhile. A thread that is interrupted while it
 *       waits for the claim gets a {@link NotBegunException} at once, and stays interrupted. Once the work has begun,
 *       only the work itself can be interrupted; the end of the run is waited for all the same.
 *   <li>{@code runAsync}: does the work in a thread of the client's executor.
 *   <li>{@code runStage}: work that needs no thread to wait for it.
 * </ul>
 *
 * <p>Cancelling the future of one of the last two (or ending it in any other way) gives up before the work has begun.
 * After that it ends nothing: the work goes on under its claim, and its outcome is stored, since a key that is free while
 * its work still runs is how a customer pays twice.
 *
 * <p>All of them end with the {@link Done} outcome, or with one of these, none of which is checked:
 * {@link NotBegunException}, {@link InProgressException}, {@link InDoubtException}, {@link FailedException},
 * {@link ClaimLostException}, {@link NotStoredException}, {@link FinalException} and {@link UnreadableException}. An
 * {@link Error} of the work gets through as it is, once the claim is given back. Futures end with the same.
 */
public final class Once {
    /** How long a duplicate waits for the outcome unless told otherwise. */
    public static final Duration DEFAULT_WAIT = Duration.ofSeconds(60);

    final Onced client;
    final BeginRequest.Builder request;
    /** In nanoseconds; below 0: without end. */
    long wait = DEFAULT_WAIT.toNanos();

    OnFailure onFailure = OnFailure.RETRY;
    /** In nanoseconds; below 0: never. */
    long failOpenAfter = -1;

    boolean interruptWhenLost = true;

    Once(Onced client, String key) {
        this.client = client;
        this.request = BeginRequest.newBuilder().setNamespace("default").setKey(key).setOwner(client.owner);
    }

    /**
     * The namespace of the key.
     *
     * @param namespace {@code default} unless told otherwise
     * @return this
     */
    public Once namespace(String namespace) {
        request.setNamespace(namespace);
        return this;
    }

    /**
     * A digest of the request, so that the key used for another one is an error.
     *
     * @param fingerprint at most 64 bytes, such as one of {@link Fingerprint}; none unless told otherwise
     * @return this
     */
    public Once fingerprint(byte[] fingerprint) {
        request.setFingerprint(ByteString.copyFrom(fingerprint));
        return this;
    }

    /**
     * How long the claim lives without a renewal: how soon others take over from a crash.
     *
     * @param ttl 2 s to 1 h; that of the namespace unless told otherwise, 30 s as a rule
     * @return this
     */
    public Once lockTtl(Duration ttl) {
        request.setLockTtl(Wire.duration(positive(ttl, "lock TTL")));
        return this;
    }

    /**
     * How long to wait while somebody else is at it.
     *
     * @param wait 60 s unless told otherwise; zero asks once
     * @return this
     */
    public Once waitFor(Duration wait) {
        if (wait.isNegative()) {
            throw new IllegalArgumentException("a wait cannot be negative: " + wait);
        }
        this.wait = Wire.nanos(wait);
        return this;
    }

    /**
     * Waits until the key has an outcome or is free, however long that takes.
     *
     * @return this
     */
    public Once waitWithoutEnd() {
        this.wait = -1;
        return this;
    }

    /**
     * How long the outcome is kept, at least.
     *
     * @param retention 1 min to 31 d; that of the namespace unless told otherwise, 24 h as a rule
     * @return this
     */
    public Once retention(Duration retention) {
        request.setRetention(Wire.duration(positive(retention, "retention")));
        return this;
    }

    /**
     * What becomes of the key if this process dies while the work runs.
     *
     * @param onLapse as the namespace says unless told otherwise: to take over, as a rule
     * @return this
     */
    public Once onLapse(OnLapse onLapse) {
        request.setOnLapse(onLapse.wire);
        return this;
    }

    /**
     * What becomes of the key when the work fails without saying. A value that cannot be stored leaves the key in doubt
     * whatever the rule is: the work was done.
     *
     * @param rule {@link OnFailure#RETRY} unless told otherwise
     * @return this
     */
    public Once onFailure(OnFailure rule) {
        this.onFailure = Objects.requireNonNull(rule);
        return this;
    }

    /**
     * Who asks: shown to duplicates and operators.
     *
     * @param owner that of the client unless told otherwise
     * @return this
     */
    public Once owner(String owner) {
        request.setOwner(owner);
        return this;
    }

    /**
     * Runs the work without a claim if no server answers for this long. Then nothing keeps others from running it too,
     * and nothing is stored: {@link Claim#isProtected} and {@link Done#isProtected} are false, and
     * {@link Onced#unprotectedRuns} counts it. Never done after a server refused, or said who holds the key, and never
     * for what is set up wrong.
     *
     * @param silence how long; never unless told otherwise
     * @return this
     */
    public Once failOpenAfter(Duration silence) {
        if (silence.isNegative()) {
            throw new IllegalArgumentException("a time without an answer cannot be negative: " + silence);
        }
        this.failOpenAfter = Wire.nanos(silence);
        return this;
    }

    /**
     * Whether the thread that works is interrupted when its claim is lost. It is interrupted once, and never after the
     * work has ended.
     *
     * @param interrupt true unless told otherwise
     * @return this
     */
    public Once interruptWhenLost(boolean interrupt) {
        this.interruptWhenLost = interrupt;
        return this;
    }

    /**
     * Runs the work in this thread if the key is the caller's, and stores what it returns as JSON; else returns what
     * another call stored.
     *
     * @param type of the value
     * @param work what is to be done once
     * @param <T> the type of the value
     * @return the outcome
     * @throws OncedException one of those above
     */
    public <T> Done<T> run(Class<T> type, Work<T> work) {
        return run(Codec.json(type), work);
    }

    /**
     * As {@link #run(Class, Work)}, with another codec.
     *
     * @param codec how the value becomes an outcome, and the reverse
     * @param work what is to be done once
     * @param <T> the type of the value
     * @return the outcome
     * @throws OncedException one of those above
     */
    public <T> Done<T> run(Codec<T> codec, Work<T> work) {
        return new Run<>(this, codec).blocking(Objects.requireNonNull(work));
    }

    /**
     * As {@link #run(Class, Work)}, in a thread of the client's executor.
     *
     * @param type of the value
     * @param work what is to be done once
     * @param <T> the type of the value
     * @return ends with the outcome
     */
    public <T> CompletableFuture<Done<T>> runAsync(Class<T> type, Work<T> work) {
        return runAsync(Codec.json(type), work);
    }

    /**
     * As {@link #runAsync(Class, Work)}, with another codec.
     *
     * @param codec how the value becomes an outcome, and the reverse
     * @param work what is to be done once
     * @param <T> the type of the value
     * @return ends with the outcome
     */
    public <T> CompletableFuture<Done<T>> runAsync(Codec<T> codec, Work<T> work) {
        var run = new Run<>(this, codec);
        return run.async(run.inAnotherThread(Objects.requireNonNull(work)));
    }

    /**
     * As {@link #run(Class, Work)}, for work that needs no thread to wait for it.
     *
     * @param type of the value
     * @param work what is to be done once
     * @param <T> the type of the value
     * @return ends with the outcome
     */
    public <T> CompletableFuture<Done<T>> runStage(Class<T> type, AsyncWork<T> work) {
        return runStage(Codec.json(type), work);
    }

    /**
     * As {@link #runStage(Class, AsyncWork)}, with another codec.
     *
     * @param codec how the value becomes an outcome, and the reverse
     * @param work what is to be done once
     * @param <T> the type of the value
     * @return ends with the outcome
     */
    public <T> CompletableFuture<Done<T>> runStage(Codec<T> codec, AsyncWork<T> work) {
        return new Run<>(this, codec).async(Run.inDoubtIfCancelled(Objects.requireNonNull(work)));
    }

    private static long positive(Duration time, String what) {
        if (time.isNegative()) {
            throw new IllegalArgumentException("a " + what + " cannot be negative: " + time);
        }
        return Wire.nanos(time);
    }
}
