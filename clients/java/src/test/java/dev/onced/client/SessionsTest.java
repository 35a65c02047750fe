package dev.onced.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNotNull;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.onced.v1.IdempotencyServiceGrpc;
import dev.onced.v1.ReleaseRequest;
import dev.onced.v1.SessionRequest;
import io.grpc.Metadata;
import io.grpc.Status;
import java.nio.channels.ClosedChannelException;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;

/** When there is a session, and when it ends. */
@Timeout(60)
class SessionsTest extends InSession {
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
        sessions.enter();
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
    void aServerThatDoesNotEndASessionHoldsNobodyUp() throws Exception {
        server.ends = false;
        session();
        assertTrue(client.close(Duration.ofSeconds(10)));
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
        sessions.enter();
        assertStillGood(awaitSession());
    }

    @Test
    void aServerThatIsAwayIsTriedAgainSoon() throws Exception {
        server.refusal = Status.UNAVAILABLE;
        crowd();
        // As often as it takes: none of these has ended soon after it stood.
        for (int tries = 1; tries <= 4; tries++) {
            int refused = tries;
            await("it was refused", () -> server.refused.get() == refused && sessions.current() == null);
            later.addAndGet(SECOND);
            if (tries == 4) {
                server.refusal = null;
            }
            sessions.enter();
        }
        assertStillGood(awaitSession());
    }

    @Test
    void oneThatIsCutBeforeItStandsIsTriedAgainSoon() throws Exception {
        server.headers = new CompletableFuture<>();
        crowd();
        assertNotNull(server.streams.poll(10, TimeUnit.SECONDS));
        server.headers = CompletableFuture.completedFuture(null);
        // One of the ways in which grpc tells of a connection that broke.
        Status cut = Status.UNKNOWN.withDescription("channel closed").withCause(new ClosedChannelException());
        sessions.current().onClose(cut, new Metadata());
        await("it has ended", () -> sessions.current() == null);
        later.addAndGet(SECOND);
        sessions.enter();
        assertStillGood(awaitSession());
    }

    @Test
    void noneIsOpenedOnceTheyHaveEnded() throws Exception {
        session();
        client.transport.endSessions().join();
        sessions.enter();
        sessions.leave();
        assertNull(sessions.current());
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
            sessions.enter();
            if (i < 2) {
                stream = awaitSession();
            }
        }
        assertNull(sessions.current());
        later.addAndGet(60 * SECOND);
        sessions.enter();
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
