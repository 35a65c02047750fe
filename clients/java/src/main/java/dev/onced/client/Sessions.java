package dev.onced.client;

import dev.onced.v1.IdempotencyServiceGrpc;
import io.grpc.CallOptions;
import io.grpc.ManagedChannel;
import io.grpc.MethodDescriptor;
import io.grpc.Status;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.Executor;
import java.util.concurrent.TimeUnit;
import java.util.function.Supplier;

/** The sessions of one connection, one at a time: opened while there are many calls, if that goes well. */
final class Sessions {
    /** From how many calls under way on a session pays. */
    private static final int MANY = 16;

    /** How long none is tried after one that could not be opened. */
    private static final long PAUSE = TimeUnit.SECONDS.toNanos(60);

    /** The same if its server was away, which may soon be back. */
    private static final long SHORT_PAUSE = TimeUnit.SECONDS.toNanos(1);

    /** One that ends so soon may be cut by something in between; after so many in a row there is a pause, too. */
    private static final long BRIEF = TimeUnit.SECONDS.toNanos(1);

    private static final int BRIEF_ONES = 3;

    private final Transport transport;
    private final Executor executor;
    private final Supplier<ManagedChannel> connected;
    private volatile Session current;

    // All below is guarded by this.
    /** None is opened any more. */
    private boolean closed;

    private int underWay;
    private int brief;
    private long notBefore = Long.MIN_VALUE;

    /** @param connected the connection; null while there is none */
    Sessions(Transport transport, Executor executor, Supplier<ManagedChannel> connected) {
        this.transport = transport;
        this.executor = executor;
        this.connected = connected;
    }

    /** Counts a call in. */
    synchronized void enter() {
        underWay++;
        openIfMany();
    }

    /** Counts it out. Its answer may have been the first of the connection. */
    synchronized void leave() {
        openIfMany();
        underWay--;
    }

    private void openIfMany() {
        if (underWay < MANY || current != null || closed || !transport.sessions) {
            return;
        }
        ManagedChannel channel = connected.get();
        long now = transport.clock.nanos();
        if (channel == null || now < notBefore) {
            return;
        }
        // In the connection's own thread: what is heard there is handed on, answers to the threads of the client.
        CallOptions inPlace = CallOptions.DEFAULT.withExecutor(Runnable::run);
        var stream = channel.newCall(IdempotencyServiceGrpc.getSessionMethod(), inPlace);
        current = new Session(transport, executor, this, stream);
        current.open(Transport.headers(transport.token(now)));
    }

    /** As {@link Session#send}; null also if there is no session. */
    <A> Runnable send(Object request, MethodDescriptor<?, A> method, long time, Session.Caller<A> caller) {
        Session session = current;
        return session == null ? null : session.send(request, method, time, caller);
    }

    synchronized void ended(Session session, Status why) {
        current = null;
        long now = transport.clock.nanos();
        long lifetime = session.lifetime();
        if (lifetime < 0) {
            notBefore = now + (isAway(why) ? SHORT_PAUSE : PAUSE);
            return;
        }
        brief = lifetime < BRIEF ? brief + 1 : 0;
        if (brief == BRIEF_ONES) {
            notBefore = now + PAUSE;
            brief = 0;
        }
    }

    /** Only what befalls a connection has a cause: what a server or a gateway says has none. */
    private static boolean isAway(Status why) {
        return why.getCode() == Status.Code.UNAVAILABLE || why.getCause() != null;
    }

    /** Ends the one that there is, if there is one, and opens no more; when its stream is gone. */
    synchronized CompletableFuture<Void> end() {
        closed = true;
        return current == null ? CompletableFuture.completedFuture(null) : current.end();
    }

    /** The one that there is, opening, standing or ending; or null. */
    Session current() {
        return current;
    }
}
