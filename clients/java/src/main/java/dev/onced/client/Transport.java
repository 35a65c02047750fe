package dev.onced.client;

import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.Executor;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.stream.Collectors;

/** The one place that sends calls: which server, which connection. How often is up to each {@link Call}. */
final class Transport {
    /**
     * The connection that a call takes. Calls of holders have their own, so that no crowd of waiting calls can hold up
     * the holder they wait for.
     */
    enum Lane {
        /** Begin. */
        WAITING,
        /** Complete, Renew, Release. */
        HOLDING
    }

    /**
     * How long a call is tried, in nanoseconds.
     *
     * @param total in all
     * @param attempt one attempt, before the next server is tried
     */
    record Patience(long total, long attempt) {}

    /**
     * An answer.
     *
     * @param message what was answered
     * @param sent when the attempt that got it was sent: a holder counts its lock from there
     */
    record Answer<A>(A message, long sent) {}

    /** Is told of what a call meets before it ends. */
    interface Watcher {
        Watcher NOBODY = (refusal, setUpWrong) -> {};

        void failed(Refusal refusal, boolean setUpWrong);
    }

    private static final Metadata.Key<String> AUTHORIZATION =
            Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);

    final HolderClock clock;
    final ScheduledExecutorService timer;
    final Bearer bearer;
    /** Whether many calls may share a stream. */
    final boolean sessions;
    private final List<Server> servers;
    /** The server that calls go to: the last one that answered. */
    private final AtomicInteger current;
    /** Whether any server has ever answered. */
    private volatile boolean reached;

    Transport(
            List<String> names,
            Access access,
            boolean sessions,
            HolderClock clock,
            Executor executor,
            ScheduledExecutorService timer) {
        if (names.isEmpty()) {
            throw new SetUpException("there is no address of a server: name at least one, such as 127.0.0.1:7411");
        }
        this.servers = names.stream().map(name -> new Server(name, access, executor, this)).toList();
        if (access.isForTls() && servers.stream().noneMatch(Server::isTls)) {
            throw new SetUpException(
                    "certificates are for TLS, and no server is called by it: write https://HOST:PORT");
        }
        this.sessions = sessions;
        this.clock = clock;
        this.timer = timer;
        this.bearer = Bearer.of(access, clock.nanos());
        // Each client starts elsewhere, so that a fleet of them spreads over the servers.
        this.current = new AtomicInteger(ThreadLocalRandom.current().nextInt(servers.size()));
    }

    /** Sends a call until it is answered, refused, or out of time. Cancelling the future ends it. */
    <Q, A> CompletableFuture<Answer<A>> call(
            Lane lane, Patience patience, MethodDescriptor<Q, A> method, Q request, Watcher watcher) {
        return new Call<>(this, lane, patience, method, request, watcher).start();
    }

    /** The token to send now; null if there is none. */
    String token(long now) {
        return bearer == null ? null : bearer.header(now);
    }

    static Metadata headers(String token) {
        var headers = new Metadata();
        if (token != null) {
            headers.put(AUTHORIZATION, token);
        }
        return headers;
    }

    int current() {
        return current.get();
    }

    Server server(int index) {
        return servers.get(index);
    }

    int servers() {
        return servers.size();
    }

    String names() {
        return servers.stream().map(server -> server.name).collect(Collectors.joining(", "));
    }

    /** Moves on from the server at {@code index}. If another call has moved on already, its choice stands. */
    void moveOn(int index) {
        current.compareAndSet(index, (index + 1) % servers.size());
    }

    void reached() {
        reached = true;
    }

    boolean isReached() {
        return reached;
    }

    CompletableFuture<?> endSessions() {
        return CompletableFuture.allOf(
                servers.stream().map(Server::endSessions).toArray(CompletableFuture[]::new));
    }

    void close() {
        servers.forEach(Server::close);
    }
}
