package dev.onced.client;

import dev.onced.v1.CancelCall;
import dev.onced.v1.SessionRequest;
import dev.onced.v1.SessionResponse;
import io.grpc.ClientCall;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.Status;
import io.grpc.StatusException;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.Executor;
import java.util.concurrent.Future;
import java.util.concurrent.RejectedExecutionException;
import java.util.concurrent.TimeUnit;

/**
 * One stream that carries many calls. Answers go to the threads of the client, as those of unary calls do; what is
 * heard of the stream itself is handled in the connection's own thread, and never waits.
 */
final class Session extends ClientCall.Listener<SessionResponse> {
    /** How many calls may be open at once. */
    private static final int MOST_CALLS = 512;

    private static final long OPENING_TIME = TimeUnit.SECONDS.toNanos(10);
    private static final long IDLE_TIME = TimeUnit.SECONDS.toNanos(30);

    /** How long the server may take to end it, too. */
    private static final long ENDING_TIME = TimeUnit.SECONDS.toNanos(1);

    /** How much longer than the server the client waits for an answer. */
    private static final long GRACE = TimeUnit.MILLISECONDS.toNanos(250);

    private static final Status UNREADABLE = Status.CANCELLED
            .withDescription("the server's answer cannot be read")
            .withCause(new IllegalStateException("the answer of a session holds none to the call that it names"));

    /** Who waits for the answer to a call. */
    abstract static class Caller<A> extends ClientCall.Listener<A> {
        /**
         * The session could not do it, and the call is to be made again. Told instead of an end.
         *
         * @param why what the server refused it with; null for what befell the stream, which is no answer
         */
        abstract void broken(Refusal why);
    }

    /** @param heardBefore how much had been heard of the server when it was sent */
    private record Open<A>(MethodDescriptor<?, A> method, Caller<A> caller, Future<?> timeout, long heardBefore) {}

    private final Transport transport;
    private final Executor executor;
    private final Sessions owner;
    private final ClientCall<SessionRequest, SessionResponse> stream;
    private final CompletableFuture<Void> over = new CompletableFuture<>();

    // All below is guarded by this.
    private final Map<Long, Open<?>> open = new HashMap<>();
    private long lastId;
    /** How many messages have come. */
    private long heard;
    /** Whether the server has taken it. */
    private boolean stands;
    /** It takes no more calls, and ends with its last one. */
    private boolean retired;
    /** Nothing is sent any more. */
    private boolean ended;
    /** When it stood first. */
    private long opened;
    /** Since when nothing is open, if nothing is. */
    private long idle;
    /** Of the opening; then of being idle; then of the end. */
    private Future<?> timer;

    Session(
            Transport transport,
            Executor executor,
            Sessions owner,
            ClientCall<SessionRequest, SessionResponse> stream) {
        this.transport = transport;
        this.executor = executor;
        this.owner = owner;
        this.stream = stream;
    }

    synchronized void open(Metadata headers) {
        timer = transport.timer.schedule(this::giveUpOpening, OPENING_TIME, TimeUnit.NANOSECONDS);
        stream.start(this, headers);
        stream.request(1);
    }

    /** Package-private for tests, which do not wait that long. */
    synchronized void giveUpOpening() {
        if (!stands && !ended) {
            retired = true;
            ended = true;
            stream.cancel("no session was opened in time", null);
        }
    }

    @Override
    public synchronized void onHeaders(Metadata headers) {
        if (ended) {
            return;
        }
        stands = true;
        opened = transport.clock.nanos();
        idle = opened;
        timer.cancel(false);
        timer = transport.timer.schedule(this::endIfIdle, IDLE_TIME, TimeUnit.NANOSECONDS);
    }

    /**
     * Sends a call, if it may go here.
     *
     * @param time how long the server may take
     * @return how to take it back; null if it was not sent
     */
    synchronized <A> Runnable send(Object request, MethodDescriptor<?, A> method, long time, Caller<A> caller) {
        // What the connection has not taken yet would only pile up.
        if (!stands || retired || open.size() >= MOST_CALLS || !stream.isReady()) {
            return null;
        }
        SessionRequest.Builder message = Envelope.of(request);
        if (message == null) {
            return null;
        }
        long id = ++lastId;
        // As long as the others where attempts are short: a server that hangs is not to take the time of the next one.
        long patience = time + Math.min(GRACE, time / 4);
        Future<?> timeout = transport.timer.schedule(() -> timeIsUp(id), patience, TimeUnit.NANOSECONDS);
        open.put(id, new Open<>(method, caller, timeout, heard));
        stream.sendMessage(message.setId(id).setTimeout(Wire.duration(time)).build());
        return () -> takeBack(id, Status.CANCELLED);
    }

    private synchronized void timeIsUp(long id) {
        Open<?> call = open.get(id);
        if (call != null && call.heardBefore() == heard) {
            // A gateway whose far side is gone may keep up the stream, and still answer pings.
            retired = true;
        }
        takeBack(id, Status.DEADLINE_EXCEEDED);
    }

    /** Nobody waits for this call any more. An answer that still comes is dropped. */
    private synchronized void takeBack(long id, Status why) {
        Open<?> call = open.get(id);
        if (call == null) {
            return;
        }
        if (!ended) {
            stream.sendMessage(SessionRequest.newBuilder()
                    .setId(id)
                    .setCancel(CancelCall.getDefaultInstance())
                    .build());
        }
        remove(id);
        tell(() -> call.caller().onClose(why, new Metadata()));
    }

    private synchronized Open<?> heard(long id) {
        heard++;
        return remove(id);
    }

    private synchronized Open<?> remove(long id) {
        Open<?> call = open.remove(id);
        if (call != null) {
            call.timeout().cancel(false);
            if (open.isEmpty()) {
                idle = transport.clock.nanos();
                if (retired) {
                    end();
                }
            }
        }
        return call;
    }

    @Override
    public void onMessage(SessionResponse response) {
        stream.request(1);
        Open<?> call = heard(response.getId());
        if (call != null) {
            // What hears of it may be the caller's own code, and take its time.
            tell(() -> answered(call, response));
        }
    }

    private <A> void answered(Open<A> call, SessionResponse response) {
        A answer = Envelope.answer(response, call.method());
        StatusException refusal = Envelope.refusal(response);
        if (answer != null) {
            call.caller().onMessage(answer);
            call.caller().onClose(Status.OK, new Metadata());
        } else if (refusal != null) {
            refused(call.caller(), refusal.getStatus(), refusal.getTrailers());
        } else {
            call.caller().onClose(UNREADABLE, new Metadata());
        }
    }

    private void refused(Caller<?> caller, Status status, Metadata trailers) {
        Refusal refusal = Refusal.of(status, trailers);
        if (refusal.isOfCredentials() || "DRAINING".equals(refusal.reason())) {
            // It says more of the session than of the call.
            retire();
            caller.broken(refusal);
        } else if (Refusal.isOfFullSession(status, trailers)) {
            // There is room outside it.
            caller.broken(refusal);
        } else if (status.getCode() == Status.Code.DEADLINE_EXCEEDED) {
            // By the time that the client gave it. A call by itself ends so without an answer, and a server that only
            // lets time pass must not count as one that answers.
            caller.onClose(Status.DEADLINE_EXCEEDED, new Metadata());
        } else {
            caller.onClose(status, trailers);
        }
    }

    @Override
    public void onClose(Status status, Metadata trailers) {
        List<Open<?>> unanswered;
        synchronized (this) {
            retired = true;
            ended = true;
            timer.cancel(false);
            unanswered = new ArrayList<>(open.values());
            open.clear();
        }
        unanswered.forEach(call -> call.timeout().cancel(false));
        // This may be a thread that closes the connection, with locks that those who call need.
        tell(() -> {
            owner.ended(this, status);
            unanswered.forEach(call -> call.caller().broken(null));
            over.complete(null);
        });
    }

    /** How long it stood; below 0 if it never did. */
    synchronized long lifetime() {
        return stands ? transport.clock.nanos() - opened : -1;
    }

    /** Package-private for tests, which do not wait that long. */
    synchronized void endIfIdle() {
        if (ended) {
            return;
        }
        long left = open.isEmpty() ? IDLE_TIME - (transport.clock.nanos() - idle) : IDLE_TIME;
        if (left <= 0) {
            retire();
        } else {
            timer = transport.timer.schedule(this::endIfIdle, left, TimeUnit.NANOSECONDS);
        }
    }

    private synchronized void retire() {
        retired = true;
        if (open.isEmpty()) {
            end();
        }
    }

    /** Takes and sends no more; when the stream is gone. */
    synchronized CompletableFuture<Void> end() {
        retired = true;
        if (!ended) {
            ended = true;
            timer.cancel(false);
            stream.halfClose();
            timer = transport.timer.schedule(
                    () -> stream.cancel("the server does not end it", null), ENDING_TIME, TimeUnit.NANOSECONDS);
        }
        return over;
    }

    private void tell(Runnable told) {
        try {
            executor.execute(told);
        } catch (RejectedExecutionException closed) {
            // The client has been closed, and nobody waits any more.
        }
    }
}
