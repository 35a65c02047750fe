package dev.onced.client;

import dev.onced.v1.CompleteRequest;
import dev.onced.v1.CompleteResponse;
import dev.onced.v1.Completed;
import dev.onced.v1.IdempotencyServiceGrpc;
import dev.onced.v1.Outcome;
import java.util.Objects;
import java.util.concurrent.CancellationException;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.CompletionStage;
import java.util.concurrent.RejectedExecutionException;
import java.util.concurrent.TimeUnit;

/** One run: begins, does the work, and sees to its end. */
final class Run<T> {
    private static final long ATTEMPT_TIME = TimeUnit.SECONDS.toNanos(10);

    private final Onced client;
    private final Codec<T> codec;
    private final OnFailure onFailure;
    private final boolean interruptWhenLost;
    private final Once options;
    private final String owner;

    Run(Once options, Codec<T> codec) {
        this.client = options.client;
        this.codec = codec;
        this.onFailure = options.onFailure;
        this.interruptWhenLost = options.interruptWhenLost;
        this.options = options;
        this.owner = options.request.getOwner();
    }

    /** How the work ended: with a value, which may be none, or with what it threw. */
    private record Ended<T>(T value, Throwable thrown) {}

    Done<T> blocking(Work<T> work) {
        client.enter();
        try {
            Begun begun = awaitBegin(new Beginning(options));
            if (isOver(begun)) {
                return replay(begun);
            }
            Held held = hold(begun);
            Ended<T> ended = perform(work, new Claim(begun.request(), held));
            return Futures.awaitToTheEnd(settle(held, ended));
        } finally {
            client.leave();
        }
    }

    CompletableFuture<Done<T>> async(AsyncWork<T> work) {
        var result = new CompletableFuture<Done<T>>();
        try {
            client.enter();
        } catch (NotBegunException closed) {
            result.completeExceptionally(closed);
            return result;
        }
        var beginning = new Beginning(options);
        result.whenComplete((done, error) -> beginning.giveUp("the caller gave up", error));
        beginning.start().thenCompose(begun -> go(begun, work, result)).whenComplete((done, error) -> {
            client.leave();
            if (error == null) {
                result.complete(done);
            } else {
                result.completeExceptionally(Futures.unwrapped(error));
            }
        });
        return result;
    }

    private CompletableFuture<Done<T>> go(Begun begun, AsyncWork<T> work, CompletableFuture<Done<T>> result) {
        if (isOver(begun)) {
            return CompletableFuture.completedFuture(replay(begun));
        }
        if (result.isDone()) {
            giveBack(begun);
            throw NotBegunException.givenUp("the caller gave up", null);
        }
        Held held = hold(begun);
        var ended = new CompletableFuture<Ended<T>>();
        try {
            CompletionStage<T> stage = work.start(new Claim(begun.request(), held));
            stage.whenComplete((value, error) ->
                    ended.complete(new Ended<>(value, error == null ? null : Futures.unwrapped(error))));
        } catch (Throwable thrown) {
            ended.complete(new Ended<>(null, thrown));
        }
        return ended.thenCompose(end -> settle(held, end));
    }

    /** A stage that was cancelled does not say whether what it stood for has stopped. */
    static <T> AsyncWork<T> inDoubtIfCancelled(AsyncWork<T> work) {
        return claim -> {
            CompletionStage<T> stage = work.start(claim);
            if (stage == null) {
                // What it has begun cannot be heard of.
                throw Failure.inDoubt(new NullPointerException("the work returned no stage"));
            }
            return stage.exceptionally(error -> {
                Throwable cause = Futures.unwrapped(error);
                throw cause instanceof CancellationException ? Failure.inDoubt(cause) : new CompletionException(cause);
            });
        };
    }

    /** Work that blocks, in a thread of the client's executor. */
    AsyncWork<T> inAnotherThread(Work<T> work) {
        return claim -> {
            var stage = new CompletableFuture<T>();
            try {
                client.workers.execute(() -> {
                    Ended<T> ended = perform(work, claim);
                    if (ended.thrown() == null) {
                        stage.complete(ended.value());
                    } else {
                        stage.completeExceptionally(ended.thrown());
                    }
                });
            } catch (RejectedExecutionException full) {
                throw Failure.retry(full);
            }
            return stage;
        };
    }

    private Begun awaitBegin(Beginning beginning) {
        CompletableFuture<Begun> begun = beginning.start();
        try {
            return Futures.await(begun);
        } catch (InterruptedException interrupted) {
            Thread.currentThread().interrupt();
            beginning.giveUp("interrupted before the work began", interrupted);
            // A claim may have come at the same moment.
            begun.thenAccept(this::giveBack);
            throw NotBegunException.givenUp("interrupted before the work began", interrupted);
        }
    }

    /** Whether there is no work to do. */
    private static boolean isOver(Begun begun) {
        return !begun.isUnprotected() && !begun.response().hasClaim();
    }

    private void giveBack(Begun begun) {
        if (!begun.isUnprotected() && begun.response().hasClaim()) {
            client.giveBack(begun.request(), begun.response().getClaim().getFencingToken());
        }
    }

    private Held hold(Begun begun) {
        if (begun.isUnprotected()) {
            return null;
        }
        var held = new Held(client, begun);
        held.keep();
        return held;
    }

    private Ended<T> perform(Work<T> work, Claim claim) {
        var interrupter = new Interrupter(Thread.currentThread());
        if (interruptWhenLost) {
            claim.whenLost().thenRun(interrupter::fire);
        }
        Throwable thrown = null;
        T value = null;
        try {
            value = work.run(claim);
        } catch (Throwable any) {
            thrown = any;
        }
        boolean ours = interrupter.disarm();
        if (thrown instanceof InterruptedException && !ours) {
            Thread.currentThread().interrupt();
        }
        return new Ended<>(value, thrown);
    }

    private Done<T> replay(Begun begun) {
        switch (begun.response().getResultCase()) {
            case IN_PROGRESS -> throw new InProgressException(begun.response().getInProgress());
            case IN_DOUBT -> throw new InDoubtException(begun.response().getInDoubt());
            default -> {
                Completed completed = begun.response().getCompleted();
                Outcome outcome = completed.getOutcome();
                if (outcome.hasError()) {
                    throw new FinalException(outcome.getError(), completed, false, null);
                }
                return done(decode(outcome, completed), completed, false);
            }
        }
    }

    private T decode(Outcome outcome, Completed completed) {
        try {
            return codec.decode(outcome);
        } catch (Exception unreadable) {
            throw new UnreadableException(FailedException.text(unreadable), unreadable, completed);
        }
    }

    private static <T> Done<T> done(T value, Completed completed, boolean ranHere) {
        return new Done<>(
                value,
                ranHere,
                true,
                completed.getOwner(),
                completed.getAttempt(),
                completed.getFencingToken(),
                Wire.instant(completed.getCompletedAt()),
                Wire.instant(completed.getExpiresAt()));
    }

    /** Stores the outcome of the work, or gives its claim back. */
    private CompletableFuture<Done<T>> settle(Held held, Ended<T> ended) {
        if (held == null) {
            return CompletableFuture.completedFuture(unprotected(ended));
        }
        Throwable thrown = ended.thrown();
        if (thrown instanceof Failure failure && failure.status() != null) {
            return store(held, Outcome.newBuilder().setError(failure.status()).build(), null, failure);
        }
        if (thrown != null) {
            return fail(held, rule(thrown), cause(thrown));
        }
        Outcome outcome;
        try {
            outcome = Objects.requireNonNull(codec.encode(ended.value()), "the codec made nothing of it");
        } catch (Throwable unfit) {
            String message = "what the work returned cannot be encoded: " + FailedException.text(unfit);
            return fail(held, OnFailure.IN_DOUBT, new UnstorableException(message, unfit));
        }
        return store(held, outcome, ended.value(), null);
    }

    private Done<T> unprotected(Ended<T> ended) {
        Throwable thrown = ended.thrown();
        if (thrown == null) {
            return new Done<>(ended.value(), true, false, owner, 0, 0, null, null);
        } else if (thrown instanceof Failure failure && failure.status() != null) {
            throw new FinalException(failure.status(), null, true, failure);
        } else if (thrown instanceof Error fault) {
            throw fault;
        } else {
            throw new FailedException(cause(thrown), rule(thrown));
        }
    }

    private OnFailure rule(Throwable thrown) {
        return thrown instanceof Failure failure && failure.rule() != null ? failure.rule() : onFailure;
    }

    private static Throwable cause(Throwable thrown) {
        return thrown instanceof Failure failure && failure.getCause() != null ? failure.getCause() : thrown;
    }

    /** Gives the claim back because of {@code cause}. */
    private CompletableFuture<Done<T>> fail(Held held, OnFailure rule, Throwable cause) {
        if (held.lost() == Lost.TAKEN_OVER) {
            held.letGo();
            return CompletableFuture.failedFuture(
                    cause instanceof Error ? cause : new ClaimLostException(Lost.TAKEN_OVER, cause, held));
        }
        held.giveBack();
        String reason = FailedException.text(cause);
        return client.release(
                        held.request.getNamespace(), held.request.getKey(), held.token(), rule.wire, reason)
                .handle((answer, error) -> {
                    if (cause instanceof Error fault) {
                        throw fault;
                    }
                    Throwable refused = error == null ? null : Futures.unwrapped(error);
                    if (refused == null || refused instanceof CallException call && !call.isClaimLost()) {
                        throw new FailedException(cause, rule, (CallException) refused, held);
                    }
                    if (refused instanceof CallException) {
                        Lost lost = held.lostBefore() == null ? Lost.TAKEN_OVER : held.lostBefore();
                        throw new ClaimLostException(lost, cause, held);
                    }
                    throw Futures.unchecked(refused);
                });
    }

    /** Stores the outcome. From here on it may be stored, so the claim is never given back. */
    private CompletableFuture<Done<T>> store(Held held, Outcome outcome, T value, Failure failure) {
        long bytes = outcome.getSerializedSize();
        long max = new Claim(held.request, held).maxOutcomeBytes();
        if (bytes > max) {
            String message =
                    "the outcome takes " + bytes + " bytes encoded, and the server stores at most " + max;
            // The work ran to its end, so whatever the rule for failures is, nobody may run it again unasked.
            return fail(held, OnFailure.IN_DOUBT, new UnstorableException(message, failure));
        }
        if (held.lost() == Lost.TAKEN_OVER) {
            held.letGo();
            return CompletableFuture.failedFuture(new ClaimLostException(Lost.TAKEN_OVER, failure, held));
        }
        held.settle();
        CompleteRequest request = CompleteRequest.newBuilder()
                .setNamespace(held.request.getNamespace())
                .setKey(held.request.getKey())
                .setFencingToken(held.token())
                .setOutcome(outcome)
                .build();
        // Work that is done is worth trying for as long as the lock would have lived.
        var patience = new Transport.Patience(Math.max(client.timeout, held.ttl), ATTEMPT_TIME);
        return client.holding(patience, IdempotencyServiceGrpc.getCompleteMethod(), request)
                .handle((answer, error) -> {
                    held.letGo();
                    if (error != null) {
                        throw notStored(held, Futures.unwrapped(error), outcome, value, failure);
                    }
                    return stored(held, answer.message(), outcome, value, failure);
                });
    }

    private Done<T> stored(Held held, CompleteResponse response, Outcome outcome, T value, Failure failure) {
        if (!response.hasCompleted()) {
            throw new NotStoredException(CallException.answerUnknown("Complete"), outcome, value, held);
        }
        if (failure != null) {
            throw new FinalException(failure.status(), response.getCompleted(), true, failure);
        }
        return done(value, response.getCompleted(), true);
    }

    private RuntimeException notStored(Held held, Throwable error, Outcome outcome, T value, Failure failure) {
        if (!(error instanceof CallException call)) {
            return Futures.unchecked(error);
        }
        return call.isClaimLost()
                ? new ClaimLostException(Lost.TAKEN_OVER, failure, held)
                : new NotStoredException(call, outcome, value, held);
    }

    /** Interrupts a thread once, and never after its work has ended. */
    private static final class Interrupter {
        private final Thread thread;
        private boolean armed = true;
        private boolean fired;

        Interrupter(Thread thread) {
            this.thread = thread;
        }

        synchronized void fire() {
            if (armed) {
                fired = true;
                thread.interrupt();
            }
        }

        /** Whether it fired; what is left of that is taken away. */
        synchronized boolean disarm() {
            armed = false;
            if (fired) {
                Thread.interrupted();
            }
            return fired;
        }
    }
}
