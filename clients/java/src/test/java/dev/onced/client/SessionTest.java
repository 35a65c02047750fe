package dev.onced.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNotNull;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.protobuf.Any;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import dev.onced.v1.BeginRequest;
import dev.onced.v1.BeginResponse;
import dev.onced.v1.CompleteResponse;
import dev.onced.v1.IdempotencyServiceGrpc;
import dev.onced.v1.ReleaseRequest;
import dev.onced.v1.SessionRequest;
import dev.onced.v1.SessionResponse;
import io.grpc.Status;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Queue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import java.util.function.BooleanSupplier;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.ValueSource;

/** Many calls on one stream, with a server that does what a test wants of it. */
@Timeout(60)
class SessionTest {
    private static final long SECOND = TimeUnit.SECONDS.toNanos(1);

    private final SessionServer server = new SessionServer();
    /** Added to the time of the client. */
    private final AtomicLong later = new AtomicLong();

    private Onced client;
    private Sessions sessions;

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

    private static void await(String what, BooleanSupplier condition) {
        long until = System.nanoTime() + 10 * SECOND;
        while (!condition.getAsBoolean()) {
            assertTrue(System.nanoTime() < until, what);
            Thread.onSpinWait();
        }
    }

    private CompletableFuture<Transport.Answer<BeginResponse>> begin(String key, long attempt, Queue<Refusal> refusals) {
        BeginRequest request = BeginRequest.newBuilder().setKey(key).build();
        return client.transport.call(
                Transport.Lane.WAITING,
                new Transport.Patience(10 * SECOND, attempt),
                IdempotencyServiceGrpc.getBeginMethod(),
                request,
                (refusal, setUpWrong) -> refusals.add(refusal));
    }

    private CompletableFuture<Transport.Answer<BeginResponse>> begin(String key) {
        return begin(key, 5 * SECOND, new ConcurrentLinkedQueue<>());
    }

    /** Counts calls in that never end. A call before them makes the connection. */
    private void crowd() {
        begin("first").join();
        for (int i = 0; i < 16; i++) {
            sessions.enter();
        }
    }

    private SessionServer.Stream session() throws Exception {
        crowd();
        return awaitSession();
    }

    private SessionServer.Stream awaitSession() throws Exception {
        SessionServer.Stream stream = server.streams.poll(10, TimeUnit.SECONDS);
        assertNotNull(stream, "no session was opened");
        await("the session stands", () -> sessions.current() != null && sessions.current().lifetime() >= 0);
        server.begins.clear();
        server.deadlines.clear();
        return stream;
    }

    private static SessionResponse claim(SessionRequest request, long token) {
        return SessionResponse.newBuilder()
                .setId(request.getId())
                .setBegin(SessionServer.claim(token))
                .build();
    }

    private static SessionResponse refusal(SessionRequest request, Status.Code code, String reason) {
        return SessionResponse.newBuilder()
                .setId(request.getId())
                .setError(error(code, reason))
                .build();
    }

    private static com.google.rpc.Status.Builder error(Status.Code code, String reason) {
        ErrorInfo info =
                ErrorInfo.newBuilder().setDomain("onced.dev").setReason(reason).build();
        return com.google.rpc.Status.newBuilder()
                .setCode(code.value())
                .setMessage("no")
                .addDetails(Any.pack(info));
    }

    private static CallException refused(CompletableFuture<?> call) {
        var thrown = assertThrows(CompletionException.class, call::join);
        return (CallException) thrown.getCause();
    }

    @Test
    void noCallWaitsForASessionToOpen() throws Exception {
        server.headers = new CompletableFuture<>();
        server.holdsBegins = true;
        List<CompletableFuture<?>> crowd = new ArrayList<>();
        for (int i = 0; i < 15; i++) {
            crowd.add(begin("k" + i));
            assertNotNull(server.begins.take());
        }
        assertNull(server.streams.poll());
        crowd.add(begin("k15"));
        assertNotNull(server.begins.take());
        var stream = server.streams.poll(10, TimeUnit.SECONDS);
        crowd.add(begin("unary"));
        assertEquals("unary", server.begins.take().getKey());
        server.headers.complete(null);
        await("the session stands", () -> sessions.current().lifetime() >= 0);
        var call = begin("k");
        SessionRequest request = stream.take();
        assertEquals("k", request.getBegin().getKey());
        stream.answer(claim(request, 3));
        assertEquals(3, call.join().message().getClaim().getFencingToken());
        crowd.forEach(waits -> waits.cancel(true));
    }

    @Test
    void sessionsCanBeTurnedOff() {
        try (Onced without = Onced.builder(server.address()).sessions(false).build()) {
            without.once("first").run(String.class, claim -> "done");
            Sessions none = without.transport.server(0).sessions(Transport.Lane.WAITING);
            for (int i = 0; i < 20; i++) {
                none.enter();
            }
            assertNull(none.current());
        }
    }

    @Test
    void answersFindTheirCallsInAnyOrderAndOthersAreDropped() throws Exception {
        var stream = session();
        var first = begin("a");
        SessionRequest ofFirst = stream.take();
        var second = begin("b");
        SessionRequest ofSecond = stream.take();
        assertTrue(ofFirst.getId() != ofSecond.getId());
        assertEquals(5, ofFirst.getTimeout().getSeconds());
        stream.answer(claim(ofFirst.toBuilder().setId(77).build(), 1));
        stream.answer(claim(ofSecond, 2));
        stream.answer(claim(ofSecond, 9));
        stream.answer(claim(ofFirst, 1));
        assertEquals(1, first.join().message().getClaim().getFencingToken());
        assertEquals(2, second.join().message().getClaim().getFencingToken());
        assertTrue(server.begins.isEmpty());
    }

    @ParameterizedTest
    @ValueSource(booleans = {true, false})
    void anAnswerThatCannotBeReadIsAsThatOfAUnaryCall(boolean ofAnotherKind) throws Exception {
        var stream = session();
        var refusals = new ConcurrentLinkedQueue<Refusal>();
        var call = begin("k", 5 * SECOND, refusals);
        SessionResponse.Builder garbled = SessionResponse.newBuilder().setId(stream.take().getId());
        if (ofAnotherKind) {
            garbled.setComplete(CompleteResponse.getDefaultInstance());
        }
        stream.answer(garbled.build());
        stream.answer(claim(stream.take(), 1));
        call.join();
        Refusal refusal = refusals.remove();
        assertEquals(Status.Code.CANCELLED, refusal.code());
        assertTrue(refusal.mayBeDone());
        assertFalse(refusal.isAnswer());
        assertTrue(server.begins.isEmpty());
    }

    enum End {
        WELL,
        WITH_AN_ERROR,
        WITH_THE_CONNECTION
    }

    @ParameterizedTest
    @EnumSource(End.class)
    void whatBefallsTheStreamIsNoAnswer(End end) throws Exception {
        var stream = session();
        var refusals = new ConcurrentLinkedQueue<Refusal>();
        var first = begin("a", 4 * SECOND, refusals);
        var second = begin("b", 4 * SECOND, refusals);
        stream.take();
        stream.take();
        later.addAndGet(SECOND);
        long broke = System.nanoTime() + later.get();
        switch (end) {
            case WELL -> stream.out().onCompleted();
            case WITH_AN_ERROR -> stream.out().onError(Status.PERMISSION_DENIED.asRuntimeException());
            default -> server.restart();
        }
        // The lock counts from the call that was answered.
        assertTrue(first.join().sent() >= broke);
        assertTrue(second.join().sent() >= broke);
        if (end != End.WITH_THE_CONNECTION) {
            // What is left of the same attempt.
            long left = server.deadlines.remove();
            assertTrue(left <= 3 * SECOND, () -> "" + left);
            assertEquals(2, server.begins.size());
            assertTrue(refusals.isEmpty(), refusals::toString);
        }
    }

    @Test
    void whatWasSentTwiceMayHaveBeenDoneByTheFirst() throws Exception {
        var stream = session();
        server.begin = request -> {
            throw SessionServer.refusal(error(Status.Code.RESOURCE_EXHAUSTED, "STORE_FULL"));
        };
        var run = client.once("k").runAsync(String.class, claim -> "no");
        SessionRequest unheard = stream.take();
        stream.out().onCompleted();
        assertEquals(unheard.getBegin().getRequestId(), server.begins.take().getRequestId());
        BeginRequest asked = server.begins.poll(10, TimeUnit.SECONDS);
        assertNotNull(asked, "a claim that nobody heard of is not looked for");
        assertFalse(asked.hasWait());
        assertThrows(java.util.concurrent.ExecutionException.class, run::get);
    }

    @ParameterizedTest
    @ValueSource(strings = {"DRAINING", "CREDENTIALS_EXPIRED", "CREDENTIALS_INVALID"})
    void aSessionThatIsOverSaysSoInAnAnswer(String reason) throws Exception {
        var stream = session();
        Session over = sessions.current();
        var refusals = new ConcurrentLinkedQueue<Refusal>();
        var stays = begin("stays");
        SessionRequest ofStays = stream.take();
        var moves = begin("moves", 5 * SECOND, refusals);
        stream.answer(refusal(stream.take(), Status.Code.UNAVAILABLE, reason));
        moves.join();
        assertEquals("moves", server.begins.take().getKey());
        assertTrue(refusals.isEmpty(), refusals::toString);
        // It takes no more, and ends with its last.
        begin("new").join();
        assertEquals("new", server.begins.take().getKey());
        assertFalse(stream.halfClosed().isDone());
        stream.answer(claim(ofStays, 4));
        assertEquals(4, stays.join().message().getClaim().getFencingToken());
        stream.halfClosed().get(10, TimeUnit.SECONDS);
        await("it has ended", () -> sessions.current() != over);
    }

    @Test
    void anErrorCountsAsThatOfAUnaryCall() throws Exception {
        var stream = session();
        var mismatch = begin("k");
        stream.answer(refusal(stream.take(), Status.Code.FAILED_PRECONDITION, "FINGERPRINT_MISMATCH"));
        CallException refused = refused(mismatch);
        assertEquals("FINGERPRINT_MISMATCH", refused.reason());
        assertEquals(Status.Code.FAILED_PRECONDITION, refused.code());
        assertFalse(refused.isUnavailable());

        // A code that nobody knows, too.
        var unknown = begin("k");
        stream.answer(SessionResponse.newBuilder()
                .setId(stream.take().getId())
                .setError(error(Status.Code.INTERNAL, "NEW").setCode(99))
                .build());
        assertEquals("NEW", refused(unknown).reason());

        var overloaded = begin("k");
        long start = System.nanoTime();
        RetryInfo info = RetryInfo.newBuilder().setRetryDelay(Wire.duration(SECOND / 2)).build();
        stream.answer(SessionResponse.newBuilder()
                .setId(stream.take().getId())
                .setError(error(Status.Code.UNAVAILABLE, "OVERLOADED").addDetails(Any.pack(info)))
                .build());
        stream.answer(claim(stream.take(), 1));
        assertTrue(System.nanoTime() - start >= SECOND / 2);
        overloaded.join();
    }

    @Test
    void whoGivesUpTakesTheCallBack() throws Exception {
        var stream = session();
        var call = begin("k");
        SessionRequest request = stream.take();
        assertTrue(call.cancel(true));
        SessionRequest cancel = stream.take();
        assertTrue(cancel.hasCancel());
        assertEquals(request.getId(), cancel.getId());
        stream.answer(claim(request, 1));
        assertTrue(client.timer.getQueue().size() <= 1, "only the session's own timer is left");
        assertStillGood(stream);
    }

    @Test
    void aCallThatTakesTooLongIsTakenBack() throws Exception {
        var stream = session();
        var refusals = new ConcurrentLinkedQueue<Refusal>();
        long start = System.nanoTime();
        var call = begin("k", SECOND, refusals);
        SessionRequest late = stream.take();
        assertEquals(1, late.getTimeout().getSeconds());
        SessionRequest cancel = stream.take();
        assertTrue(System.nanoTime() - start >= SECOND * 5 / 4);
        assertTrue(cancel.hasCancel());
        assertEquals(late.getId(), cancel.getId());
        SessionRequest again = stream.take();
        stream.answer(claim(late, 1));
        stream.answer(claim(again, 2));
        assertEquals(2, call.join().message().getClaim().getFencingToken());
        Refusal refusal = refusals.remove();
        assertEquals(Status.Code.DEADLINE_EXCEEDED, refusal.code());
        assertFalse(refusal.isAnswer());
        assertTrue(refusal.message().contains("did not answer within 1.0 s"), refusal::message);
    }

    private void assertStillGood(SessionServer.Stream stream) throws Exception {
        var call = begin("good");
        stream.answer(claim(stream.take(), 8));
        assertEquals(8, call.join().message().getClaim().getFencingToken());
    }

    @Test
    void largeRequestsAndThoseBeyondTheLimitAreUnary() throws Exception {
        var stream = session();
        begin("k".repeat(64 << 10)).join();
        assertEquals(64 << 10, server.begins.take().getKey().length());
        List<CompletableFuture<?>> open = new ArrayList<>();
        for (int i = 0; i < 512; i++) {
            open.add(begin("open"));
            stream.take();
        }
        begin("one more").join();
        assertEquals("one more", server.begins.take().getKey());
        open.remove(0).cancel(true);
        assertTrue(stream.take().hasCancel());
        assertStillGood(stream);
        open.forEach(call -> call.cancel(true));
    }

    @Test
    void whatTheConnectionDoesNotTakeDoesNotPileUp() throws Exception {
        server.reads = false;
        session();
        List<CompletableFuture<?>> open = new ArrayList<>();
        await("the rest is unary", () -> {
            open.add(begin("k".repeat(60_000)));
            return !server.begins.isEmpty();
        });
        assertTrue(open.size() < 100, () -> open.size() + " were sent in vain");
        open.forEach(call -> call.cancel(true));
    }

    @Test
    void anIdleSessionEndsAndAnotherMayBeOpened() throws Exception {
        var stream = session();
        var waits = begin("k");
        SessionRequest request = stream.take();
        later.addAndGet(31 * SECOND);
        sessions.current().endIfIdle();
        stream.answer(claim(request, 1));
        waits.join();
        later.addAndGet(29 * SECOND);
        sessions.current().endIfIdle();
        assertStillGood(stream);
        assertFalse(stream.halfClosed().isDone());
        later.addAndGet(30 * SECOND);
        sessions.current().endIfIdle();
        stream.halfClosed().get(10, TimeUnit.SECONDS);
        await("it has ended", () -> sessions.current() == null);
        begin("unary").join();
        assertStillGood(awaitSession());
    }

    @Test
    void closingTheClientEndsItsSessions() throws Exception {
        var stream = session();
        var started = new CompletableFuture<Void>();
        var go = new CompletableFuture<Void>();
        var run = client.once("k").runAsync(String.class, claim -> {
            started.complete(null);
            go.get();
            return "done";
        });
        stream.answer(claim(stream.take(), 1));
        started.join();
        assertFalse(client.close(Duration.ZERO));
        assertFalse(stream.halfClosed().isDone());
        go.complete(null);
        assertTrue(client.close(Duration.ofSeconds(10)));
        assertEquals("done", run.join().value());
        // Ended, and not only cut off.
        stream.halfClosed().get(10, TimeUnit.SECONDS);
        assertTrue(client.timer.awaitTermination(5, TimeUnit.SECONDS), "the timer goes on");
        assertTrue(client.threads.awaitTermination(5, TimeUnit.SECONDS), "threads go on");
    }

    @Test
    void oneThatCannotBeOpenedIsNotTriedAgainForAMinute() throws Exception {
        server.refusal = Status.UNIMPLEMENTED;
        crowd();
        await("it was refused", () -> server.refused.get() == 1 && sessions.current() == null);
        later.addAndGet(59 * SECOND);
        begin("k").join();
        assertEquals(1, server.refused.get());
        server.refusal = null;
        later.addAndGet(SECOND);
        begin("k").join();
        assertStillGood(awaitSession());
    }

    @Test
    void oneThatIsNotAnsweredIsGivenUp() throws Exception {
        server.headers = new CompletableFuture<>();
        crowd();
        assertNotNull(server.streams.poll(10, TimeUnit.SECONDS));
        long delay = client.timer.getQueue().peek() instanceof java.util.concurrent.Delayed timer
                ? timer.getDelay(TimeUnit.SECONDS)
                : 0;
        assertTrue(delay >= 8 && delay <= 10, () -> delay + " s");
        sessions.current().giveUpOpening();
        await("it has ended", () -> sessions.current() == null);
        begin("k").join();
        assertNull(server.streams.poll());
    }

    @Test
    void thoseThatAreCutSoonAreNotOpenedAgainAndAgain() throws Exception {
        var stream = session();
        for (int i = 0; i < 3; i++) {
            stream.out().onCompleted();
            await("it has ended", () -> sessions.current() == null);
            begin("k").join();
            if (i < 2) {
                stream = awaitSession();
            }
        }
        assertNull(sessions.current());
        later.addAndGet(60 * SECOND);
        begin("k").join();
        assertStillGood(awaitSession());
    }

    @Test
    void holdersHaveASessionOfTheirOwn() throws Exception {
        var stream = session();
        client.transport
                .call(
                        Transport.Lane.HOLDING,
                        new Transport.Patience(SECOND, SECOND),
                        IdempotencyServiceGrpc.getReleaseMethod(),
                        ReleaseRequest.getDefaultInstance(),
                        Transport.Watcher.NOBODY)
                .join();
        assertEquals(1, server.releases.get());
        assertTrue(stream.requests().isEmpty());
    }
}
