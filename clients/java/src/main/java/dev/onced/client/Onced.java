package dev.onced.client;

import dev.onced.v1.BeginRequest;
import dev.onced.v1.BeginResponse;
import dev.onced.v1.Disposition;
import dev.onced.v1.IdempotencyServiceGrpc;
import dev.onced.v1.ReleaseRequest;
import dev.onced.v1.ReleaseResponse;
import io.grpc.MethodDescriptor;
import java.nio.file.Path;
import java.time.Duration;
import java.util.Arrays;
import java.util.List;
import java.util.Objects;
import java.util.Set;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.Executor;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledThreadPoolExecutor;
import java.util.concurrent.ThreadFactory;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicLong;
import java.util.function.Supplier;

/**
 * A client of one or several servers that share a store. Safe for many threads; made once and kept. It connects when it
 * is first used, and its threads are daemons.
 *
 * <pre>{@code
 * try (Onced client = Onced.connect("10.0.0.1:7411,10.0.0.2:7411")) {
 *     Done<Receipt> done = client.once("order-17").namespace("shop").run(Receipt.class, claim -> charge(claim.token()));
 * }
 * }</pre>
 */
public final class Onced implements AutoCloseable {
    /** How long a call is tried, beyond the wait it asks for, unless the builder says otherwise. */
    public static final Duration DEFAULT_TIMEOUT = Duration.ofSeconds(30);

    /** How long {@link #close()} waits. */
    public static final Duration DEFAULT_PATIENCE = Duration.ofSeconds(30);

    /** The server of those who name none, in the environment. */
    private static final String SERVER_VARIABLE = "ONCED_SERVER";

    private static final String DEFAULT_SERVER = "127.0.0.1:7411";
    /** How long one attempt may take, beyond the wait it asks for, before the next server is tried. */
    private static final long ATTEMPT_TIME = TimeUnit.SECONDS.toNanos(10);
    /** The longest reason that the service takes, in bytes. */
    private static final int REASON_BYTES = 1_024;

    private static final System.Logger LOG = System.getLogger(Onced.class.getName());

    final Transport transport;
    final ScheduledThreadPoolExecutor timer;
    /** Where answers are handled, and where {@link Once#runAsync} works unless told otherwise. */
    final ExecutorService threads;

    final Executor workers;
    final long timeout;
    final String owner;
    private final AtomicLong unprotected = new AtomicLong();
    /** Those who wait for a claim: closing the client ends their wait. */
    private final Set<Beginning> beginnings = ConcurrentHashMap.newKeySet();

    private final CompletableFuture<Void> ended = new CompletableFuture<>();
    /** Guarded by this: runs, and what goes on in the background. The connections live as long as one of them. */
    private int active;

    private boolean closed;

    private Onced(Builder builder) {
        this.timeout = Wire.nanos(builder.timeout);
        this.owner = builder.owner == null ? Owner.standard() : builder.owner;
        // Checked before there are any threads.
        this.threads = Executors.newCachedThreadPool(daemons("onced"));
        this.timer = new ScheduledThreadPoolExecutor(1, daemons("onced-timer"));
        this.timer.setRemoveOnCancelPolicy(true);
        this.workers = builder.executor == null ? threads : builder.executor;
        try {
            this.transport = new Transport(
                    builder.servers, builder.access(), builder.sessions, builder.clock, threads, timer);
        } catch (RuntimeException invalid) {
            threads.shutdown();
            timer.shutdown();
            throw invalid;
        }
    }

    /**
     * A client of the servers that the environment variable {@code ONCED_SERVER} names, else of
     * {@code 127.0.0.1:7411}.
     *
     * @return the client
     * @throws SetUpException if an address cannot be read
     */
    public static Onced connect() {
        return builder().build();
    }

    /**
     * A client of these servers. Whether one is there shows at the first call.
     *
     * @param servers {@code HOST:PORT}, {@code http://HOST:PORT} or, by TLS, {@code https://HOST:PORT}; several with
     *     commas between
     * @return the client
     * @throws SetUpException if an address cannot be read
     */
    public static Onced connect(String servers) {
        return builder(servers).build();
    }

    /**
     * Settings for a client of the servers that {@link #connect()} takes.
     *
     * @return the settings
     */
    public static Builder builder() {
        String named = System.getenv(SERVER_VARIABLE);
        return builder(named == null || named.isBlank() ? DEFAULT_SERVER : named);
    }

    /**
     * Settings for a client of these servers.
     *
     * @param servers as for {@link #connect(String)}
     * @return the settings
     */
    public static Builder builder(String servers) {
        return new Builder(servers);
    }

    /**
     * Runs a function once for a key.
     *
     * @param key the caller's name for one logical operation, 1 to 512 bytes of UTF-8
     * @return its options; nothing happens before one of their {@code run} methods
     */
    public Once once(String key) {
        return new Once(this, Objects.requireNonNull(key));
    }

    /**
     * How many runs failed open: they worked without a claim, because no server answered in time.
     *
     * @return since the client was made
     */
    public long unprotectedRuns() {
        return unprotected.get();
    }

    /** Closes the client as {@link #close(Duration)} does, with a patience of 30 s. */
    @Override
    public void close() {
        close(DEFAULT_PATIENCE);
    }

    /**
     * Ends what waits for a claim, and waits for all work that runs, and for its outcomes to be stored. No work is
     * ended, and no outcome dropped, when the patience is over: their connections live until they are done.
     *
     * @param patience how long to wait
     * @return true if all is done; false if the time was up, or the thread was interrupted
     */
    public boolean close(Duration patience) {
        boolean idle;
        synchronized (this) {
            closed = true;
            idle = active == 0;
        }
        for (Beginning beginning : beginnings) {
            beginning.giveUp("the client was closed", null);
        }
        if (idle) {
            shutDown();
        }
        try {
            ended.get(Wire.nanos(patience), TimeUnit.NANOSECONDS);
            return true;
        } catch (TimeoutException late) {
            return false;
        } catch (InterruptedException interrupted) {
            Thread.currentThread().interrupt();
            return false;
        } catch (ExecutionException impossible) {
            throw new IllegalStateException(impossible);
        }
    }

    private void shutDown() {
        transport.endSessions().thenRun(() -> {
            transport.close();
            timer.shutdown();
            threads.shutdown();
        });
        ended.complete(null);
    }

    /** Keeps the connections for a run until it leaves. */
    synchronized void enter() {
        if (closed) {
            throw NotBegunException.givenUp("the client is closed", null);
        }
        active++;
    }

    void leave() {
        boolean last;
        synchronized (this) {
            active--;
            last = closed && active == 0;
        }
        if (last) {
            shutDown();
        }
    }

    void waiting(Beginning beginning) {
        beginnings.add(beginning);
        synchronized (this) {
            if (!closed) {
                return;
            }
        }
        beginning.giveUp("the client was closed", null);
    }

    void waitsNoMore(Beginning beginning) {
        beginnings.remove(beginning);
    }

    /** Does something that no caller waits for, as part of a run that has not left yet. */
    private void background(String what, Supplier<CompletableFuture<?>> job) {
        synchronized (this) {
            active++;
        }
        CompletableFuture<?> started;
        try {
            started = job.get();
        } catch (RuntimeException failed) {
            started = CompletableFuture.failedFuture(failed);
        }
        started.whenComplete((done, error) -> {
            if (error != null) {
                LOG.log(System.Logger.Level.DEBUG, "{0}: {1}; it lapses by itself", what, error.getMessage());
            }
            leave();
        });
    }

    /**
     * Asks once more, after a Begin whose answer nobody heard, and gives a claim that it so learns of back. Nothing has
     * run under it.
     */
    void findAndGiveBack(BeginRequest begun) {
        BeginRequest request = begun.toBuilder().clearWait().build();
        background("a claim that was given up may not have been given back", () -> begin(request, patience(0))
                .thenCompose(answer -> {
                    BeginResponse response = answer.message();
                    return response.hasClaim()
                            ? release(request, response.getClaim().getFencingToken())
                            : CompletableFuture.completedFuture(null);
                }));
    }

    /** Gives back a claim that nothing has run under. */
    void giveBack(BeginRequest begun, long token) {
        background("a claim that was given up was not given back", () -> release(begun, token));
    }

    private CompletableFuture<?> release(BeginRequest begun, long token) {
        return release(begun.getNamespace(), begun.getKey(), token, Disposition.DISPOSITION_RETRY,
                "its caller gave up before the work began");
    }

    private CompletableFuture<Transport.Answer<BeginResponse>> begin(
            BeginRequest request, Transport.Patience patience) {
        return waiting(patience, IdempotencyServiceGrpc.getBeginMethod(), request, Transport.Watcher.NOBODY);
    }

    <Q, A> CompletableFuture<Transport.Answer<A>> waiting(
            Transport.Patience patience, MethodDescriptor<Q, A> method, Q request, Transport.Watcher watcher) {
        return transport.call(Transport.Lane.WAITING, patience, method, request, watcher);
    }

    <Q, A> CompletableFuture<Transport.Answer<A>> holding(
            Transport.Patience patience, MethodDescriptor<Q, A> method, Q request) {
        return transport.call(Transport.Lane.HOLDING, patience, method, request, Transport.Watcher.NOBODY);
    }

    CompletableFuture<Transport.Answer<ReleaseResponse>> release(
            String namespace, String key, long token, Disposition disposition, String reason) {
        ReleaseRequest request = ReleaseRequest.newBuilder()
                .setNamespace(namespace)
                .setKey(key)
                .setFencingToken(token)
                .setDisposition(disposition)
                .setReason(head(reason, REASON_BYTES))
                .build();
        return holding(patience(0), IdempotencyServiceGrpc.getReleaseMethod(), request);
    }

    /** For a call that asks to wait this long. */
    Transport.Patience patience(long wait) {
        return new Transport.Patience(Wire.plus(wait, timeout), Wire.plus(wait, ATTEMPT_TIME));
    }

    void countUnprotected() {
        unprotected.incrementAndGet();
    }

    /** The beginning of a text, within so many bytes of UTF-8, cut between characters; what is no text is shown as ?. */
    static String head(String text, int maxBytes) {
        byte[] bytes = text.getBytes(java.nio.charset.StandardCharsets.UTF_8);
        int end = Math.min(bytes.length, maxBytes);
        while (end < bytes.length && (bytes[end] & 0xc0) == 0x80) {
            end--;
        }
        return new String(bytes, 0, end, java.nio.charset.StandardCharsets.UTF_8);
    }

    private static ThreadFactory daemons(String name) {
        var count = new AtomicInteger();
        return task -> {
            var thread = new Thread(task, name + "-" + count.incrementAndGet());
            thread.setDaemon(true);
            return thread;
        };
    }

    /** Settings of an {@link Onced}. */
    public static final class Builder {
        private final List<String> servers;
        private Duration timeout = DEFAULT_TIMEOUT;
        private String owner;
        private Executor executor;
        private HolderClock clock = HolderClock.system();
        private Path ca;
        private Path cert;
        private Path key;
        private String token;
        private Path tokenFile;
        private boolean tokenInPlaintext;
        private boolean sessions = true;

        private Builder(String servers) {
            this.servers = Arrays.stream(servers.split(","))
                    .map(String::strip)
                    .filter(server -> !server.isEmpty())
                    .toList();
        }

        /**
         * How long a call is tried, beyond the wait it asks for. 30 s unless told otherwise.
         *
         * @param timeout more than nothing
         * @return this
         */
        public Builder timeout(Duration timeout) {
            if (timeout.isNegative() || timeout.isZero()) {
                throw new IllegalArgumentException("a timeout is more than nothing, not " + timeout);
            }
            this.timeout = timeout;
            return this;
        }

        /**
         * Who asks: shown to duplicates and operators. User, host and process id unless told otherwise.
         *
         * @param owner at most 256 bytes of UTF-8
         * @return this
         */
        public Builder owner(String owner) {
            this.owner = Objects.requireNonNull(owner);
            return this;
        }

        /**
         * Where {@link Once#runAsync} does its work. Daemon threads of the client, as many as it takes, unless told
         * otherwise.
         *
         * @param executor not ended by {@link Onced#close()}
         * @return this
         */
        public Builder executor(Executor executor) {
            this.executor = Objects.requireNonNull(executor);
            return this;
        }

        /**
         * The CA that signed the certificates of the servers. Those that Java trusts unless told otherwise.
         *
         * @param file PEM
         * @return this
         */
        public Builder caFile(Path file) {
            this.ca = Objects.requireNonNull(file);
            return this;
        }

        /**
         * The certificate to show to servers, and its key. They are read when the client is built.
         *
         * @param cert PEM
         * @param key PEM, PKCS #8, not encrypted
         * @return this
         */
        public Builder identityFiles(Path cert, Path key) {
            this.cert = Objects.requireNonNull(cert);
            this.key = Objects.requireNonNull(key);
            return this;
        }

        /**
         * The token that says who calls.
         *
         * @param token printable, on one line
         * @return this
         */
        public Builder token(String token) {
            this.token = Objects.requireNonNull(token);
            this.tokenFile = null;
            return this;
        }

        /**
         * The file of the token that says who calls. It is read again when it is refused, and when it is 5 s old.
         *
         * @param file the token alone; white space around it is ignored
         * @return this
         */
        public Builder tokenFile(Path file) {
            this.tokenFile = Objects.requireNonNull(file);
            this.token = null;
            return this;
        }

        /**
         * Sends the token also where it goes over a network without TLS, for all to read.
         *
         * @return this
         */
        public Builder allowTokenInPlaintext() {
            this.tokenInPlaintext = true;
            return this;
        }

        /**
         * Whether calls share a stream while many are under way, which spares client and server most of the work of each.
         * They do unless told otherwise.
         *
         * @param sessions false to send every call by itself
         * @return this
         */
        public Builder sessions(boolean sessions) {
            this.sessions = sessions;
            return this;
        }

        /** The clock that locks are counted on; for tests. */
        Builder clock(HolderClock clock) {
            this.clock = clock;
            return this;
        }

        private Access access() {
            return new Access(ca, cert, key, token, tokenFile, tokenInPlaintext);
        }

        /**
         * The client.
         *
         * @return a client that nothing was sent by yet
         * @throws SetUpException if an address or a file cannot be read, if there is no address, or if a token would go
         *     over a network without TLS
         */
        public Onced build() {
            return new Onced(this);
        }
    }
}
