package dev.onced.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.onced.v1.LookupResponse;
import java.io.IOException;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.time.Duration;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutionException;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;

/** Servers that come and go, and a client that is closed. */
@Timeout(90)
class ClientTest {
    /** An address where nobody listens. */
    private static String nobody() throws IOException {
        try (var socket = new ServerSocket(0, 1, InetAddress.getLoopbackAddress())) {
            return "127.0.0.1:" + socket.getLocalPort();
        }
    }

    @Test
    void theNextServerIsTriedAtOnce() throws Exception {
        String gone = nobody();
        try (var server = TestServer.start();
                var client = Onced.connect(gone + "," + server.address())) {
            for (int i = 0; i < 4; i++) {
                assertTrue(client.once("k" + i).run(String.class, claim -> "done").ranHere());
            }
        }
    }

    @Test
    void aServerThatComesBackIsFoundAgain() throws Exception {
        var first = TestServer.start();
        try (var client = first.connect()) {
            client.once("before").run(String.class, claim -> "done");
            first.kill();
            var run = client.once("after").runAsync(String.class, claim -> "done");
            Thread.sleep(1_500);
            assertFalse(run.isDone());
            try (var second = TestServer.startAt(first.address())) {
                assertEquals(first.address(), second.address());
                assertEquals("done", run.get().value());
            }
        }
    }

    @Test
    void withoutAServerNothingRunsUnlessTheCallerSaysSo() throws Exception {
        try (var client = Onced.builder(nobody()).timeout(Duration.ofMillis(600)).build()) {
            NotBegunException closed = assertThrows(NotBegunException.class, () -> client.once("k")
                    .run(String.class, claim -> {
                        throw new AssertionError("it ran");
                    }));
            assertTrue(closed.isUnavailable());
            assertTrue(closed.getMessage().contains("no answer from"), closed.getMessage());
            assertEquals(0, client.unprotectedRuns());

            Once once = client.once("k").namespace("shop").failOpenAfter(Duration.ofMillis(200));
            Done<String> open = once.run(String.class, claim -> {
                assertFalse(claim.isProtected());
                assertEquals("shop", claim.namespace());
                assertEquals("k", claim.key());
                assertEquals(0, claim.token());
                claim.saveCheckpoint(new byte[1]);
                return "done";
            });
            assertFalse(open.isProtected());
            assertTrue(open.ranHere());
            assertEquals(1, client.unprotectedRuns());
        }
    }

    @Test
    void aHolderThatIsKnownIsNoOutage() throws Exception {
        var server = TestServer.start();
        var go = new CountDownLatch(1);
        try (var client = Onced.builder(server.address()).timeout(Duration.ofMillis(800)).build()) {
            client.once("k").lockTtl(Duration.ofSeconds(2)).runAsync(String.class, claim -> {
                go.await();
                return "done";
            });
            try (var admin = new Admin(server.address())) {
                admin.await("k", LookupResponse::hasInProgress);
            }
            var waits = client.once("k")
                    .failOpenAfter(Duration.ofMillis(1_500))
                    .runAsync(String.class, claim -> "twice");
            Thread.sleep(1_200);
            server.kill();
            ExecutionException failed = assertThrows(ExecutionException.class, waits::get);
            assertTrue(failed.getCause() instanceof NotBegunException, failed::toString);
            assertEquals(0, client.unprotectedRuns());
            go.countDown();
            client.close(Duration.ofSeconds(10));
        }
    }

    @Test
    void closingWaitsForWorkAndItsOutcome() throws Exception {
        try (var server = TestServer.start();
                var admin = new Admin(server.address())) {
            var client = server.connect();
            var started = new CountDownLatch(1);
            var go = new CountDownLatch(1);
            var run = client.once("k").runAsync(String.class, claim -> {
                started.countDown();
                go.await();
                return "done";
            });
            started.await();
            assertFalse(client.close(Duration.ZERO));
            NotBegunException closed = assertThrows(
                    NotBegunException.class, () -> client.once("other").run(String.class, claim -> "no"));
            assertTrue(closed.isUnavailable());
            go.countDown();
            assertTrue(client.close(Duration.ofSeconds(30)));
            assertEquals("done", run.get().value());
            assertTrue(admin.lookup("k").hasCompleted());
        }
    }

    @Test
    void closingEndsThoseWhoWait() throws Exception {
        try (var server = TestServer.start();
                var admin = new Admin(server.address());
                var holder = server.connect()) {
            var go = new CountDownLatch(1);
            var held = holder.once("k").runAsync(String.class, claim -> {
                go.await();
                return "done";
            });
            admin.await("k", LookupResponse::hasInProgress);
            var client = server.connect();
            var waits = client.once("k").runAsync(String.class, claim -> "no");
            assertTrue(client.close(Duration.ofSeconds(30)));
            ExecutionException ended = assertThrows(ExecutionException.class, waits::get);
            assertTrue(ended.getCause().getMessage().contains("closed"), ended::toString);
            assertTrue(((NotBegunException) ended.getCause()).isUnavailable());
            go.countDown();
            assertEquals("done", held.get().value());
        }
    }
}
