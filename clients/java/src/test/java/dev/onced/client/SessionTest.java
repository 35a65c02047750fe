package dev.onced.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNotNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.protobuf.Any;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import dev.onced.v1.BeginRequest;
import dev.onced.v1.CompleteResponse;
import dev.onced.v1.SessionRequest;
import dev.onced.v1.SessionResponse;
import io.grpc.Status;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.ValueSource;

/** What becomes of calls in a session. */
@Timeout(60)
class SessionTest extends InSession {
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
        server.refusal = Status.UNIMPLEMENTED;
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
        server.refusal = Status.UNIMPLEMENTED;
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
    @CsvSource({
        "UNAVAILABLE,DRAINING",
        "UNAUTHENTICATED,CREDENTIALS_EXPIRED",
        "UNAUTHENTICATED,CREDENTIALS_INVALID"
    })
    void aSessionThatIsOverSaysSoInAnAnswer(Status.Code code, String reason) throws Exception {
        var stream = session();
        Session over = sessions.current();
        var refusals = new ConcurrentLinkedQueue<Refusal>();
        var stays = begin("stays");
        SessionRequest ofStays = stream.take();
        var moves = begin("moves", 5 * SECOND, refusals);
        stream.answer(refusal(stream.take(), code, reason));
        moves.join();
        assertEquals("moves", server.begins.take().getKey());
        if (code == Status.Code.UNAUTHENTICATED) {
            Refusal told = refusals.remove();
            assertEquals(reason, told.reason());
            assertTrue(told.isAnswer());
        }
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

    @ParameterizedTest
    @CsvSource({"UNAVAILABLE,DRAINING", "UNAUTHENTICATED,CREDENTIALS_EXPIRED"})
    void whatWasRefusedWithTheSessionWasNotDone(Status.Code code, String reason) throws Exception {
        var stream = session();
        server.begin = request -> {
            throw SessionServer.refusal(error(Status.Code.RESOURCE_EXHAUSTED, "STORE_FULL"));
        };
        var call = begin("k");
        stream.answer(refusal(stream.take(), code, reason));
        assertFalse(refused(call).mayBeDone());
    }

    @Test
    void whoWasRefusedDoesNotFailOpen() throws Exception {
        var stream = session();
        server.begin = request -> {
            if (request.getWait().getSeconds() == 0) {
                throw Status.UNAVAILABLE.asRuntimeException();
            }
            return SessionServer.claim(1);
        };
        var run = client.once("k")
                .failOpenAfter(Duration.ofSeconds(2))
                .runStage(Codec.text(), claim -> CompletableFuture.completedFuture("done"));
        stream.answer(refusal(stream.take(), Status.Code.UNAUTHENTICATED, "CREDENTIALS_INVALID"));
        assertEquals("done", run.get().value());
        assertEquals(0, client.unprotectedRuns());
    }

    @Test
    void whatAFullSessionRefusesIsMadeByItselfAtOnce() throws Exception {
        var stream = session();
        var refusals = new ConcurrentLinkedQueue<Refusal>();
        server.begin = request -> {
            throw SessionServer.refusal(error(Status.Code.RESOURCE_EXHAUSTED, "STORE_FULL"));
        };
        var call = begin("k", 5 * SECOND, refusals);
        later.addAndGet(SECOND);
        ErrorInfo full = ErrorInfo.newBuilder()
                .setDomain("onced.dev")
                .setReason("OVERLOADED")
                .putMetadata("limit", "max_session_calls")
                .build();
        stream.answer(SessionResponse.newBuilder()
                .setId(stream.take().getId())
                .setError(error(Status.Code.UNAVAILABLE, "").setDetails(0, Any.pack(full)))
                .build());
        CallException refused = refused(call);
        assertEquals("STORE_FULL", refused.reason());
        assertFalse(refused.mayBeDone());
        assertEquals(1, refusals.size(), refusals::toString);
        assertEquals("k", server.begins.take().getKey());
        // In what is left of the same attempt.
        long left = server.deadlines.remove();
        assertTrue(left <= 4 * SECOND, () -> "" + left);
        assertStillGood(stream);
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
        // Somebody is there.
        stream.answer(claim(late.toBuilder().setId(77).build(), 1));
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

    @Test
    void aSessionInWhichNothingComesTakesNoMoreCalls() throws Exception {
        var stream = session();
        assertStillGood(stream);
        var stays = begin("stays", 30 * SECOND, new ConcurrentLinkedQueue<>());
        SessionRequest ofStays = stream.take();
        var call = begin("k", SECOND, new ConcurrentLinkedQueue<>());
        stream.take();
        assertTrue(stream.take().hasCancel());
        call.join();
        assertEquals("k", server.begins.take().getKey());
        // It ends with its last.
        assertFalse(stream.halfClosed().isDone());
        stream.answer(claim(ofStays, 4));
        assertEquals(4, stays.join().message().getClaim().getFencingToken());
        stream.halfClosed().get(10, TimeUnit.SECONDS);
    }

    @Test
    void aServerThatLetsTheTimePassHasNotAnswered() throws Exception {
        var stream = session();
        var refusals = new ConcurrentLinkedQueue<Refusal>();
        var call = begin("k", SECOND, refusals);
        stream.answer(refusal(stream.take(), Status.Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"));
        stream.answer(claim(stream.take(), 1));
        call.join();
        Refusal refusal = refusals.remove();
        assertEquals(Status.Code.DEADLINE_EXCEEDED, refusal.code());
        assertFalse(refusal.isAnswer());
        assertTrue(refusal.mayBeDone());
    }

    @Test
    void whatACallerDoesWithItsAnswerHoldsUpNobody() throws Exception {
        var stream = session();
        var go = new CompletableFuture<Void>();
        var started = new CompletableFuture<Void>();
        var slow = client.once("slow").runStage(Codec.text(), claim -> {
            started.complete(null);
            go.join();
            return CompletableFuture.completedFuture("done");
        });
        stream.answer(claim(stream.take(), 1));
        started.join();
        assertStillGood(stream);
        go.complete(null);
        assertEquals("done", slow.join().value());
    }

    @Test
    void largeRequestsAndThoseBeyondTheLimitAreUnary() throws Exception {
        var stream = session();
        begin("k".repeat(64 << 10)).join();
        assertEquals(64 << 10, server.begins.take().getKey().length());
        List<CompletableFuture<?>> open = new ArrayList<>();
        for (int i = 0; i < 512; i++) {
            open.add(begin("open", 30 * SECOND, new ConcurrentLinkedQueue<>()));
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
}
