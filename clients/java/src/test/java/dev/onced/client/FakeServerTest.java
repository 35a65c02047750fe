package dev.onced.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNotNull;
import static org.junit.jupiter.api.Assertions.assertSame;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.protobuf.Any;
import com.google.rpc.ErrorInfo;
import dev.onced.v1.BeginRequest;
import dev.onced.v1.BeginResponse;
import dev.onced.v1.CompleteRequest;
import dev.onced.v1.CompleteResponse;
import dev.onced.v1.Completed;
import dev.onced.v1.Disposition;
import dev.onced.v1.IdempotencyServiceGrpc;
import dev.onced.v1.ReleaseRequest;
import dev.onced.v1.ReleaseResponse;
import dev.onced.v1.RenewRequest;
import dev.onced.v1.RenewResponse;
import io.grpc.Server;
import io.grpc.Status;
import io.grpc.netty.shaded.io.grpc.netty.NettyServerBuilder;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.StreamObserver;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.ServerSocket;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.Queue;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicLong;
import java.util.function.Supplier;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** A server that loses answers, over a real socket. */
@Timeout(60)
class FakeServerTest {
    private final BlockingQueue<BeginRequest> begins = new LinkedBlockingQueue<>();
    private final BlockingQueue<ReleaseRequest> releases = new LinkedBlockingQueue<>();
    private final AtomicInteger completes = new AtomicInteger();
    private final AtomicInteger renews = new AtomicInteger();
    /** How many Begins are never answered. */
    private final AtomicInteger unheard = new AtomicInteger();
    /** How the next Begins are refused. */
    private final Queue<Supplier<RuntimeException>> refusals = new ConcurrentLinkedQueue<>();
    /** How many Completes end as if the connection broke. */
    private final AtomicInteger brokenCompletes = new AtomicInteger();

    private volatile Status.Code refuseCompletes;
    private Server server;
    private Onced client;

    @BeforeEach
    void start() throws Exception {
        server = NettyServerBuilder.forAddress(new InetSocketAddress("127.0.0.1", 0))
                .addService(new Service())
                .build()
                .start();
        client = Onced.builder("127.0.0.1:" + server.getPort())
                .timeout(Duration.ofSeconds(5))
                .build();
    }

    @AfterEach
    void end() {
        client.close(Duration.ZERO);
        server.shutdownNow();
    }

    private static RuntimeException refusal(Status.Code code, String reason) {
        return StatusProto.toStatusRuntimeException(com.google.rpc.Status.newBuilder()
                .setCode(code.value())
                .setMessage("no")
                .addDetails(Any.pack(
                        ErrorInfo.newBuilder().setDomain("onced.dev").setReason(reason).build()))
                .build());
    }

    private final class Service extends IdempotencyServiceGrpc.IdempotencyServiceImplBase {
        @Override
        public void begin(BeginRequest request, StreamObserver<BeginResponse> answer) {
            begins.add(request);
            Supplier<RuntimeException> refused = refusals.poll();
            if (refused != null) {
                answer.onError(refused.get());
                return;
            }
            if (unheard.getAndDecrement() > 0) {
                return;
            }
            answer.onNext(BeginResponse.newBuilder()
                    .setClaim(dev.onced.v1.Claim.newBuilder()
                            .setFencingToken(17)
                            .setAttempt(1)
                            .setLockTtl(com.google.protobuf.Duration.newBuilder().setSeconds(2))
                            .setMaxOutcomeBytes(1_000))
                    .build());
            answer.onCompleted();
        }

        @Override
        public void complete(CompleteRequest request, StreamObserver<CompleteResponse> answer) {
            completes.incrementAndGet();
            if (refuseCompletes != null) {
                answer.onError(refusal(refuseCompletes, "QUOTA_EXCEEDED"));
            } else if (brokenCompletes.getAndDecrement() > 0) {
                answer.onError(Status.UNKNOWN.asRuntimeException());
            } else {
                answer.onNext(CompleteResponse.newBuilder()
                        .setCompleted(Completed.newBuilder().setFencingToken(17).setAttempt(1))
                        .build());
                answer.onCompleted();
            }
        }

        @Override
        public void renew(RenewRequest request, StreamObserver<RenewResponse> answer) {
            renews.incrementAndGet();
            answer.onError(refusal(Status.Code.UNAVAILABLE, "STORE_UNAVAILABLE"));
        }

        @Override
        public void release(ReleaseRequest request, StreamObserver<ReleaseResponse> answer) {
            releases.add(request);
            answer.onNext(ReleaseResponse.getDefaultInstance());
            answer.onCompleted();
        }
    }

    @Test
    void aClaimThatNobodyHeardOfIsGivenBack() throws Exception {
        unheard.set(1);
        var run = client.once("k").runAsync(String.class, claim -> "no");
        BeginRequest first = begins.take();
        assertTrue(run.cancel(true));
        BeginRequest second = begins.take();
        assertEquals(first.getRequestId(), second.getRequestId());
        assertEquals(false, second.hasWait());
        ReleaseRequest release = releases.take();
        assertEquals(17, release.getFencingToken());
        assertEquals(Disposition.DISPOSITION_RETRY, release.getDisposition());
    }

    @Test
    void whoFailedOpenGivesNothingBackSinceItsWorkRuns() {
        unheard.set(100);
        Done<String> open = client.once("k")
                .failOpenAfter(Duration.ofMillis(300))
                .run(String.class, claim -> "open " + claim.isProtected());
        assertEquals("open false", open.value());
        assertEquals(Duration.ZERO, Duration.ofNanos(Wire.nanos(begins.remove().getWait())));
        client.close(Duration.ofSeconds(5));
        assertTrue(releases.isEmpty());
    }

    /** Of two servers the first takes connections and says nothing. */
    @ParameterizedTest
    @CsvSource({"true,1000", "false,300"})
    void aServerThatHangsLeavesTimeForAnother(boolean answeredBefore, long failOpenAfter) throws Exception {
        try (var hangs = new ServerSocket(0, 10, InetAddress.getLoopbackAddress());
                Onced both = Onced.connect("127.0.0.1:" + hangs.getLocalPort() + ",127.0.0.1:" + server.getPort())) {
            if (answeredBefore) {
                both.once("warm").run(String.class, claim -> "done");
            }
            both.transport.moveOn(1);
            assertEquals(0, both.transport.current());
            assertTrue(both.once("k")
                    .failOpenAfter(Duration.ofMillis(failOpenAfter))
                    .run(String.class, claim -> "done")
                    .isProtected());
        }
    }

    @Test
    void whoGivesUpACallThatBreaksAtThatMomentIsNotHeldUp() throws Exception {
        refusals.add(Status.UNAVAILABLE::asRuntimeException);
        var sender = new CompletableFuture<Thread>();
        var broken = new CompletableFuture<Long>();
        Onced other = Onced.builder("127.0.0.1:" + server.getPort())
                .clock(() -> {
                    // Only the second attempt asks in this thread.
                    if (Thread.currentThread().getName().startsWith("onced-timer")
                            && sender.complete(Thread.currentThread())) {
                        return broken.join();
                    }
                    return System.nanoTime();
                })
                .build();
        var beginning = new Beginning(other.once("k"));
        var begun = beginning.start();
        Thread sends = sender.get();
        var givesUp = new Thread(() -> {
            synchronized (beginning) {
                broken.completeExceptionally(new IllegalStateException("the clock is broken"));
                while (sends.getState() != Thread.State.BLOCKED) {
                    Thread.onSpinWait();
                }
                beginning.giveUp("not needed any more", null);
            }
        });
        givesUp.setDaemon(true);
        givesUp.start();
        givesUp.join(TimeUnit.SECONDS.toMillis(10));
        // Closing the client would hang, too.
        assertFalse(givesUp.isAlive(), "two threads wait for each other");
        assertTrue(begun.isCompletedExceptionally());
        other.close(Duration.ofSeconds(10));
    }

    @Test
    void aCompleteIsRepeatedAndNothingIsReleased() {
        brokenCompletes.set(2);
        assertTrue(client.once("k").run(String.class, claim -> "done").ranHere());
        assertEquals(3, completes.get());
        assertTrue(releases.isEmpty());
    }

    @Test
    void anOutcomeThatIsRefusedIsTheCallersAndNothingIsReleased() {
        refuseCompletes = Status.Code.RESOURCE_EXHAUSTED;
        NotStoredException unknown =
                assertThrows(NotStoredException.class, () -> client.once("k").run(String.class, claim -> "done"));
        assertEquals("done", unknown.value());
        assertEquals("\"done\"", unknown.outcome().getResponse().toStringUtf8());
        assertEquals("QUOTA_EXCEEDED", unknown.reason());
        assertEquals(17, unknown.token());
        assertTrue(releases.isEmpty());
    }

    @Test
    void aLockThatCannotBeRenewedEndsAndItsOutcomeIsStoredAllTheSame() {
        Done<Lost> done = client.once("k").interruptWhenLost(false).run(Codec.json(Lost.class), claim -> {
            Lost lost = claim.whenLost().get();
            assertSame(lost, claim.lost());
            assertTrue(claim.lockLeft().isZero());
            return lost;
        });
        assertEquals(Lost.LOCK_ENDED, done.value());
        assertTrue(renews.get() > 0);
        assertEquals(1, completes.get());
    }

    @Test
    void theSignalComesWhenTheMachineSleptPastTheLock() {
        var now = new AtomicLong();
        try (Onced sleeper = Onced.builder("127.0.0.1:" + server.getPort())
                .clock(now::get)
                .build()) {
            Done<Lost> done = sleeper.once("k").interruptWhenLost(false).run(Codec.json(Lost.class), claim -> {
                assertEquals(Duration.ofSeconds(2), claim.lockLeft());
                now.set(Duration.ofHours(1).toNanos());
                return claim.whenLost().get();
            });
            assertEquals(Lost.LOCK_ENDED, done.value());
        }
    }

    @Test
    void anEarlierAttemptThatMayHaveBeenDoneIsNotForgottenOnARefusal() throws Exception {
        refusals.add(Status.UNKNOWN::asRuntimeException);
        refusals.add(() -> refusal(Status.Code.RESOURCE_EXHAUSTED, "STORE_FULL"));
        NotBegunException refused =
                assertThrows(NotBegunException.class, () -> client.once("k").run(String.class, claim -> "no"));
        assertEquals("STORE_FULL", refused.reason());
        ReleaseRequest release = releases.poll(10, TimeUnit.SECONDS);
        assertNotNull(release, "the claim was not given back");
        assertEquals(17, release.getFencingToken());
        assertEquals(3, begins.size());
        assertEquals(1, begins.stream().map(BeginRequest::getRequestId).distinct().count());
    }

    @Test
    void aBareRefusalIsNoOutage() {
        refusals.add(Status.PERMISSION_DENIED::asRuntimeException);
        NotBegunException refused = assertThrows(NotBegunException.class, () -> client.once("k")
                .failOpenAfter(Duration.ZERO)
                .run(String.class, claim -> "open"));
        assertTrue(!refused.isUnavailable(), refused::toString);
        assertEquals(0, client.unprotectedRuns());
    }

    @Test
    void aTokenThatWasRefusedIsNoOutageThoughAnotherIsTried(@TempDir Path dir) throws Exception {
        Path token = Files.writeString(dir.resolve("token"), "one");
        refusals.add(() -> {
            try {
                Files.writeString(token, "two");
            } catch (java.io.IOException error) {
                throw new java.io.UncheckedIOException(error);
            }
            return refusal(Status.Code.UNAUTHENTICATED, "UNAUTHENTICATED");
        });
        unheard.set(1);
        try (Onced other = Onced.builder("127.0.0.1:" + server.getPort())
                .tokenFile(token)
                .build()) {
            Done<String> done = other.once("k")
                    .failOpenAfter(Duration.ofMillis(300))
                    .run(String.class, claim -> "done");
            assertTrue(done.isProtected());
            assertEquals(0, other.unprotectedRuns());
        }
    }
}
