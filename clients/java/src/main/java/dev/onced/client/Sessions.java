package dev.onced.client;

import dev.onced.v1.IdempotencyServiceGrpc;
import io.grpc.CallOptions;
import io.grpc.ManagedChannel;
import io.grpc.MethodDescriptor;
import java.util.concurrent.Executor;
import java.util.concurrent.TimeUnit;
import java.util.function.Supplier;

/** The sessions of one connection, one at a time: opened while there are many calls, if that goes well. */
final class Sessions {
    /** From how many calls under way on a session pays. */
    private static final int MANY = 16;

    /** How long none is tried after one that could not be opened. */
    private static final long PAUSE = TimeUnit.SECONDS.toNanos(60);

    /** One that ends so soon may be cut by something in between; after so many in a row there is a pause, too. */
    private static final long BRIEF = TimeUnit.SECONDS.toNanos(1);

    private static final int BRIEF_ONES = 3;

    private final Transport transport;
    private final Executor executor;
    private final Supplier<ManagedChannel> connected;
    private volatile Session current;

    // All below is guarded by this.
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
        if (underWay < MANY || current != null || !transport.sessions) {
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

    synchronized void ended(Session session) {
        current = null;
        long lifetime = session.lifetime();
        brief = lifetime < BRIEF ? brief + 1 : 0;
        if (lifetime < 0 || brief == BRIEF_ONES) {
            notBefore = transport.clock.nanos() + PAUSE;
            brief = 0;
        }
    }

    /** The one that there is, opening, standing or ending; or null. */
    Session current() {
        return current;
    }
}
