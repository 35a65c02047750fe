package dev.onced.client;

import dev.onced.v1.BeginRequest;
import dev.onced.v1.BeginResponse;
import dev.onced.v1.IdempotencyServiceGrpc;
import java.util.UUID;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;

/** Begins and waits, with one request id, until the key is ours, has an outcome, or the wait is over. */
final class Beginning {
    /** The first wait is short, so that a record in doubt is told of soon; each further one doubles, up to the last. */
    private static final long FIRST_POLL = TimeUnit.SECONDS.toNanos(1);

    private static final long LAST_POLL = TimeUnit.SECONDS.toNanos(16);
    /** The pause after an answer that came sooner than the wait that it was asked for. */
    private static final long EARLY_ANSWER_PAUSE = TimeUnit.MILLISECONDS.toNanos(500);
    /** The shortest attempt that asks for an outage, however many servers there are. */
    private static final long SHORTEST_ATTEMPT = TimeUnit.MILLISECONDS.toNanos(100);

    private final Onced client;
    private final BeginRequest request;
    /** Below 0: without end. */
    private final long wait;
    /** Below 0: never. */
    private final long failOpenAfter;

    private final long started;
    private final CompletableFuture<Begun> result = new CompletableFuture<>();
    /** Guarded by this. Once over, nothing is sent any more, and a claim that still comes is given back. */
    private boolean over;
    /** The call that is under way, if one is. */
    private CompletableFuture<Transport.Answer<BeginResponse>> call;
    /** Whether a server has said what is no outage, or something is set up wrong: then the run never fails open. */
    private boolean noOutage;
    /** How many attempts have failed. */
    private int failures;
    /** Whether the work runs without a claim. */
    private boolean open;

    Beginning(Once options) {
        this.client = options.client;
        // Each run is an attempt of its own: an id is spent once its claim was given back.
        this.request = options.request.clone().setRequestId(UUID.randomUUID().toString()).build();
        this.wait = options.wait;
        this.failOpenAfter = options.failOpenAfter;
        this.started = client.transport.clock.nanos();
    }

    /** Ends with {@link NotBegunException}, if not well. */
    CompletableFuture<Begun> start() {
        client.waiting(this);
        result.whenComplete((begun, error) -> client.waitsNoMore(this));
        if (failOpenAfter < 0) {
            poll(FIRST_POLL);
        } else {
            askForOutage();
        }
        return result;
    }

    /**
     * Asks without a wait: a server that is waiting for the holder is not silent, and must not be taken for it. A client
     * that nobody has answered yet lets its first round over the servers end before it fails open, in the time of a
     * connection at most: what takes long may be this process.
     */
    private void askForOutage() {
        long first = client.transport.isReached() ? failOpenAfter : Math.max(failOpenAfter, Server.CONNECT_TIMEOUT);
        var timer = client.timer.schedule(() -> failOpen(false), failOpenAfter, TimeUnit.NANOSECONDS);
        result.whenComplete((begun, error) -> timer.cancel(false));
        // One server that hangs is not to take the time in which another would answer.
        long attempt = Math.max(first / client.transport.servers(), SHORTEST_ATTEMPT);
        ask(0, 0, new Transport.Patience(first, Math.min(attempt, client.patience(0).attempt())));
    }

    /** Does nothing if it is over by now. */
    void giveUp(String why, Throwable cause) {
        if (stop()) {
            result.completeExceptionally(NotBegunException.givenUp(why, cause));
        }
    }

    /** True for the one caller that ended it. A claim that nobody hears of is given back. */
    private synchronized boolean stop() {
        if (over) {
            return false;
        }
        over = true;
        // If an answer is here already, `answered` sees to it.
        if (call != null && (call.cancel(true) || call.isCompletedExceptionally())) {
            client.findAndGiveBack(request);
        }
        return true;
    }

    private long left() {
        return Math.max(0, wait - (client.transport.clock.nanos() - started));
    }

    private void poll(long longest) {
        long poll = wait < 0 ? longest : Math.min(longest, left());
        ask(poll, longest, client.patience(poll));
    }

    /**
     * Asks once.
     *
     * @param poll how long the server is to wait
     * @param longest how long it would have been but for the end of the wait; 0 if this asks for an outage
     */
    private void ask(long poll, long longest, Transport.Patience patience) {
        CompletableFuture<Transport.Answer<BeginResponse>> sent;
        synchronized (this) {
            if (over) {
                return;
            }
            BeginRequest asked = request.toBuilder().setWait(Wire.duration(poll)).build();
            call = client.waiting(patience, IdempotencyServiceGrpc.getBeginMethod(), asked, this::failed);
            sent = call;
        }
        sent.whenComplete((answer, error) -> {
            if (error == null) {
                answered(answer, longest, poll);
            } else {
                refused(Futures.unwrapped(error), longest);
            }
        });
    }

    /** An attempt failed. */
    private void failed(Refusal refusal, boolean setUpWrong) {
        synchronized (this) {
            noOutage |= refusal.isAnswer() || setUpWrong;
            failures++;
        }
        if (failOpenAfter >= 0 && client.transport.clock.nanos() - started >= failOpenAfter) {
            failOpen(false);
        }
    }

    private void answered(Transport.Answer<BeginResponse> answer, long longest, long poll) {
        BeginResponse response = answer.message();
        boolean askAgain = response.hasInProgress() && (wait < 0 || left() > 0);
        synchronized (this) {
            call = null;
            noOutage = true;
            if (over) {
                if (response.hasClaim() && !open) {
                    client.giveBack(request, response.getClaim().getFencingToken());
                }
                return;
            }
            over = !askAgain;
        }
        if (askAgain) {
            // A server may end a wait early, by its own limit. Asking again at once could make a busy loop.
            long rest = Math.min(poll - (client.transport.clock.nanos() - answer.sent()), EARLY_ANSWER_PAUSE);
            long next = longest == 0 ? FIRST_POLL : Math.min(longest * 2, LAST_POLL);
            client.timer.schedule(() -> poll(next), Math.max(0, rest), TimeUnit.NANOSECONDS);
        } else if (response.getResultCase() == BeginResponse.ResultCase.RESULT_NOT_SET) {
            result.completeExceptionally(new NotBegunException(CallException.answerUnknown("Begin")));
        } else {
            result.complete(new Begun(request, response, answer.sent()));
        }
    }

    private void refused(Throwable error, long longest) {
        boolean unavailable = error instanceof CallException refusal && refusal.isUnavailable();
        boolean goOn = longest == 0 && unavailable;
        synchronized (this) {
            call = null;
            if (over) {
                return;
            }
            over = !goOn;
        }
        if (goOn) {
            goOn();
        } else if (error instanceof CallException refusal) {
            if (refusal.mayBeDone()) {
                // An attempt that nobody heard of may have been given the claim.
                client.findAndGiveBack(request);
            }
            result.completeExceptionally(new NotBegunException(refusal));
        } else {
            client.findAndGiveBack(request);
            result.completeExceptionally(NotBegunException.failed("the key could not be claimed: " + error, error));
        }
    }

    /** No server could be asked: either that is an outage, or it is asked for as long as without failing open. */
    private void goOn() {
        synchronized (this) {
            if (!noOutage) {
                // It may have ended early, where a server has asked for more time than there is.
                long left = failOpenAfter - (client.transport.clock.nanos() - started);
                client.timer.schedule(() -> failOpen(true), Math.max(0, left), TimeUnit.NANOSECONDS);
                return;
            }
        }
        poll(FIRST_POLL);
    }

    /**
     * Runs without a claim, unless it is known to be no outage. What follows is not nothing, so a claim that a server may
     * have given all the same is not given back: it keeps others away until it lapses.
     *
     * @param asked whether the servers are known to have been asked
     */
    private void failOpen(boolean asked) {
        synchronized (this) {
            boolean silent = asked || failures >= client.transport.servers() || client.transport.isReached();
            if (over || noOutage || !silent) {
                return;
            }
            if (call != null && call.isDone() && !call.isCompletedExceptionally()) {
                return; // An answer has just come.
            }
            over = true;
            open = true;
            if (call != null) {
                call.cancel(true);
            }
        }
        client.countUnprotected();
        client.threads.execute(() -> result.complete(new Begun(request, null, 0)));
    }
}
