package dev.onced.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.protobuf.Any;
import com.google.rpc.ErrorInfo;
import dev.onced.v1.BeginRequest;
import dev.onced.v1.BeginResponse;
import dev.onced.v1.IdempotencyServiceGrpc;
import dev.onced.v1.SessionRequest;
import dev.onced.v1.SessionResponse;
import io.grpc.Status;
import java.time.Duration;
import java.util.Queue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import java.util.function.BooleanSupplier;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;

/** A client whose calls go in a session, with a server that does what a test wants of it. */
abstract class InSession {
    static final long SECOND = TimeUnit.SECONDS.toNanos(1);

    final SessionServer server = new SessionServer();
    /** Added to the time of the client. */
    final AtomicLong later = new AtomicLong();

    Onced client;
    Sessions sessions;

    @BeforeEach
    void start() {
        client = Onced.builder(server.address())
                .timeout(Duration.ofSeconds(5))
                .clock(() -> System.nanoTime() + later.get())
                .build();
        sessions = client.transport.server(0).sessions(Transport.Lane.WAITING);
    }

    @AfterEach
    void end() {
        client.close(Duration.ZERO);
        server.close();
    }

    static void await(String what, BooleanSupplier condition) throws InterruptedException {
        long until = System.nanoTime() + 10 * SECOND;
        while (!condition.getAsBoolean()) {
            assertTrue(System.nanoTime() < until, what);
            Thread.sleep(1);
        }
    }

    CompletableFuture<Transport.Answer<BeginResponse>> begin(String key, long attempt, Queue<Refusal> refusals) {
        BeginRequest request = BeginRequest.newBuilder().setKey(key).build();
        return client.transport.call(
                Transport.Lane.WAITING,
                new Transport.Patience(30 * SECOND, attempt),
                IdempotencyServiceGrpc.getBeginMethod(),
                request,
                (refusal, setUpWrong) -> refusals.add(refusal));
    }

    CompletableFuture<Transport.Answer<BeginResponse>> begin(String key) {
        return begin(key, 5 * SECOND, new ConcurrentLinkedQueue<>());
    }

    /** Counts calls in that never end. A call before them makes the connection. */
    void crowd() {
        begin("first").join();
        for (int i = 0; i < 16; i++) {
            sessions.enter();
        }
    }

    SessionServer.Stream session() throws Exception {
        crowd();
        return awaitSession();
    }

    SessionServer.Stream awaitSession() throws Exception {
        SessionServer.Stream stream = server.streams.poll(10, TimeUnit.SECONDS);
        assertNotNull(stream, "no session was opened");
        await("the session stands", () -> sessions.current() != null && sessions.current().lifetime() >= 0);
        server.begins.clear();
        server.deadlines.clear();
        return stream;
    }

    static SessionResponse claim(SessionRequest request, long token) {
        return SessionResponse.newBuilder()
                .setId(request.getId())
                .setBegin(SessionServer.claim(token))
                .build();
    }

    static SessionResponse refusal(SessionRequest request, Status.Code code, String reason) {
        return SessionResponse.newBuilder()
                .setId(request.getId())
                .setError(error(code, reason))
                .build();
    }

    static com.google.rpc.Status.Builder error(Status.Code code, String reason) {
        ErrorInfo info =
                ErrorInfo.newBuilder().setDomain("onced.dev").setReason(reason).build();
        return com.google.rpc.Status.newBuilder()
                .setCode(code.value())
                .setMessage("no")
                .addDetails(Any.pack(info));
    }

    static CallException refused(CompletableFuture<?> call) {
        var thrown = assertThrows(CompletionException.class, call::join);
        return (CallException) thrown.getCause();
    }

    void assertStillGood(SessionServer.Stream stream) throws Exception {
        var call = begin("good");
        stream.answer(claim(stream.take(), 8));
        assertEquals(8, call.join().message().getClaim().getFencingToken());
    }
}
