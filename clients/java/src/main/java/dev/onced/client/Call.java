package dev.onced.client;

import io.grpc.CallOptions;
import io.grpc.ClientCall;
import io.grpc.ConnectivityState;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.Status;
import java.net.UnknownHostException;
import java.util.OptionalLong;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;

/** One call, sent as often as it takes. */
final class Call<Q, A> {
    private static final long SHORTEST_ATTEMPT = TimeUnit.MILLISECONDS.toNanos(1);

    private final Transport transport;
    private final Transport.Lane lane;
    private final Transport.Patience patience;
    private final MethodDescriptor<Q, A> method;
    private final Q request;
    private final Transport.Watcher watcher;
    private final CompletableFuture<Transport.Answer<A>> result = new CompletableFuture<>();
    private final long deadline;

    private int attempts;
    /** The longest that a server of this round asked for. */
    private long pushback;
    /** The last thing that a server said, if one did. */
    private Refusal answered;
    /** Whether an attempt may have been carried out. */
    private boolean mayBeDone;
    /** Ends the attempt that is under way. */
    private Runnable takeBack;

    Call(
            Transport transport,
            Transport.Lane lane,
            Transport.Patience patience,
            MethodDescriptor<Q, A> method,
            Q request,
            Transport.Watcher watcher) {
        this.transport = transport;
        this.lane = lane;
        this.patience = patience;
        this.method = method;
        this.request = request;
        this.watcher = watcher;
        this.deadline = Wire.plus(transport.clock.nanos(), patience.total());
    }

    CompletableFuture<Transport.Answer<A>> start() {
        attempt();
        result.whenComplete((answer, error) -> stop());
        return result;
    }

    /** Ends an attempt that nobody waits for any more. */
    private synchronized void stop() {
        if (takeBack != null) {
            takeBack.run();
        }
    }

    private void attempt() {
        sending(() -> new Attempt(transport.current()).start());
    }

    /** Sends, unless nobody waits any more: whether it did. */
    private boolean sending(Runnable attempt) {
        try {
            synchronized (this) {
                if (!result.isDone()) {
                    attempt.run();
                    return true;
                }
            }
        } catch (RuntimeException | Error fault) {
            // Whoever waits must hear of it, also from a thread that nobody watches. Not under the lock: they take locks
            // of their own, which others hold while they end this call.
            result.completeExceptionally(fault);
        }
        return false;
    }

    /** A connection that does not come up in time fails all calls that wait for it. */
    private Future<?> watchConnecting(Server server, ManagedChannel channel) {
        if (channel.getState(true) == ConnectivityState.READY) {
            return CompletableFuture.completedFuture(null);
        }
        return transport.timer.schedule(
                () -> server.drop(lane, channel), Server.CONNECT_TIMEOUT, TimeUnit.NANOSECONDS);
    }

    /** One attempt: in the session if there is one, and else, or if that ends first, by itself. */
    private final class Attempt extends Session.Caller<A> {
        private final int index;
        private final Server server;
        private final Sessions sessions;
        private final long ends;
        private final long time;
        private long sent;
        private String token;
        private Future<?> connecting = CompletableFuture.completedFuture(null);
        private A message;

        Attempt(int index) {
            this.index = index;
            this.server = transport.server(index);
            this.sessions = server.sessions(lane);
            this.sent = transport.clock.nanos();
            this.time = Math.max(SHORTEST_ATTEMPT, Math.min(patience.attempt(), deadline - sent));
            this.ends = Wire.plus(sent, time);
        }

        void start() {
            sessions.enter();
            token = transport.token(sent);
            takeBack = sessions.send(request, method, time, this);
            if (takeBack == null) {
                startAlone(time);
            }
        }

        private void startAlone(long left) {
            token = transport.token(sent);
            ManagedChannel channel = server.channel(lane);
            ClientCall<Q, A> call =
                    channel.newCall(method, CallOptions.DEFAULT.withDeadlineAfter(left, TimeUnit.NANOSECONDS));
            takeBack = () -> call.cancel("its caller has given up", null);
            connecting = watchConnecting(server, channel);
            call.start(this, Transport.headers(token));
            call.request(2);
            call.sendMessage(request);
            call.halfClose();
        }

        @Override
        void broken(Refusal why) {
            // What a session carried when it ended may have been done.
            mayBeDone |= why == null || why.mayBeDone();
            if (why != null && why.isOfCredentials()) {
                // It is an answer, whatever becomes of the call by itself.
                watcher.failed(why, false);
            }
            boolean sends = sending(() -> {
                sent = transport.clock.nanos();
                startAlone(Math.max(SHORTEST_ATTEMPT, ends - sent));
            });
            if (!sends) {
                onClose(Status.CANCELLED, new Metadata());
            }
        }

        @Override
        public void onMessage(A message) {
            this.message = message;
        }

        @Override
        public void onClose(Status status, Metadata trailers) {
            connecting.cancel(false);
            sessions.leave();
            if (result.isDone()) {
                return;
            }
            try {
                if (status.isOk() && message != null) {
                    transport.reached();
                    result.complete(new Transport.Answer<>(message, sent));
                } else {
                    Status ended = status.isOk() ? Status.INTERNAL.withDescription("no message came") : status;
                    failed(ended, trailers);
                }
            } catch (RuntimeException | Error fault) {
                result.completeExceptionally(fault);
            }
        }

        private void failed(Status status, Metadata trailers) {
            if (status.getCode() == Status.Code.UNAUTHENTICATED && token != null) {
                transport.reached();
                if (transport.bearer.renew(token, transport.clock.nanos())) {
                    // It is an answer, whatever becomes of the next attempt.
                    watcher.failed(Refusal.of(status, trailers), false);
                    // A file is changed a few times at most, so nobody goes round here for long.
                    attempt();
                    return;
                }
            }
            Refusal refusal = Refusal.of(status, trailers);
            if (refusal.reason() == null && status.getCode() == Status.Code.DEADLINE_EXCEEDED) {
                refusal = refusal.withMessage(
                        server.name + " did not answer within " + Wire.shown(time));
            }
            again(index, refusal, Retry.advice(status, trailers));
        }
    }

    /** Moves on from the server at {@code index}, and waits for the next attempt, if that would help. */
    private void again(int index, Refusal refusal, OptionalLong advice) {
        attempts++;
        mayBeDone |= refusal.mayBeDone();
        Server server = transport.server(index);
        String remedy = refusal.reason() == null ? Access.advice(refusal.message(), server.isTls()) : null;
        Refusal told = remedy == null
                ? refusal
                : refusal.withMessage(server.name + ": " + refusal.message() + "; " + remedy);
        watcher.failed(told, remedy != null || isNameless(refusal));
        if (refusal.reason() != null) {
            transport.reached();
            answered = refusal;
        }
        // A client that was answered before sits it out: certificates are renewed, servers replaced.
        if (remedy != null && attempts >= transport.servers() && !transport.isReached()) {
            result.completeExceptionally(CallException.refused(told, true, mayBeDone));
            return;
        }
        if (advice.isEmpty()) {
            result.completeExceptionally(CallException.refused(told, false, mayBeDone));
            return;
        }
        transport.moveOn(index);
        pushback = Math.max(pushback, advice.getAsLong());
        long wait = Retry.pause(attempts, transport.servers(), pushback);
        if (attempts % transport.servers() == 0) {
            pushback = 0;
        }
        long left = deadline - transport.clock.nanos();
        if (wait >= left) {
            result.completeExceptionally(unavailable(told, patience.total() - Math.max(left, 0)));
        } else if (wait == 0) {
            attempt();
        } else {
            transport.timer.schedule(this::attempt, wait, TimeUnit.NANOSECONDS);
        }
    }

    /** Whether there is no such host, as far as this machine knows. */
    private boolean isNameless(Refusal refusal) {
        for (Throwable cause = refusal.cause(); cause != null; cause = cause.getCause()) {
            if (cause instanceof UnknownHostException) {
                return !transport.isReached();
            }
        }
        return false;
    }

    /** Whether a server was there and could not do it, or none was. */
    private CallException unavailable(Refusal last, long tried) {
        String text = last.toString();
        Refusal shown = last;
        if (last.reason() == null && answered != null) {
            // What was said tells more of the servers than that the time was up.
            text += "; before that: " + answered;
            shown = answered;
        }
        String who = shown.reason() == null
                ? "no answer from " + transport.names() + " in "
                : transport.names() + " answered, but could not do it in ";
        return new CallException(who + Wire.shown(tried) + "; last: " + text, shown, true, false, mayBeDone);
    }
}
