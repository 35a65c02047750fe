package dev.onced.client;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNotNull;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertSame;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.protobuf.Any;
import com.google.rpc.ErrorInfo;
import dev.onced.v1.LookupResponse;
import io.grpc.Status;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CancellationException;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicReference;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;

/** Against a real server. */
@Timeout(60)
class OnceTest {
    private final TestServer server = TestServer.start();
    private final Onced client = server.connect();
    private final Admin admin = new Admin(server.address());

    @AfterEach
    void end() {
        admin.close();
        client.close(Duration.ZERO);
        server.close();
    }

    @Test
    void aSecondRunGetsWhatTheFirstStored() {
        Done<String> first = client.once("k").run(String.class, claim -> "paid by " + claim.token());
        Done<String> second = client.once("k").run(String.class, claim -> "paid again");
        assertTrue(first.ranHere() && first.isProtected());
        assertFalse(second.ranHere());
        assertEquals(first.value(), second.value());
        assertEquals("paid by " + first.token(), second.value());
        assertEquals(first.token(), second.token());
        assertEquals(1, second.attempt());
        assertTrue(second.owner().contains("@"));
        assertNotNull(second.expiresAt());
        assertEquals("one", client.once("k").namespace("other").run(String.class, claim -> "one").value());
    }

    @Test
    void theClaimNamesItsKey() throws Exception {
        Work<String> work = claim -> claim.namespace() + " " + claim.key();
        assertEquals("default k", client.once("k").run(String.class, work).value());
        assertEquals("shop k", client.once("k").namespace("shop").runAsync(String.class, work).get().value());
    }

    @Test
    void ofManyAtOnceOneRuns() throws Exception {
        var ran = new AtomicInteger();
        List<CompletableFuture<Done<Integer>>> all = new ArrayList<>();
        for (int i = 0; i < 20; i++) {
            all.add(client.once("k").runAsync(Integer.class, claim -> ran.incrementAndGet()));
        }
        for (CompletableFuture<Done<Integer>> one : all) {
            assertEquals(1, one.get().value());
        }
        assertEquals(1, ran.get());
    }

    @Test
    void anotherRequestUnderTheSameKeyIsRefused() {
        client.once("k").fingerprint(Fingerprint.ofJson(List.of(1))).run(Integer.class, claim -> 1);
        NotBegunException refused = assertThrows(NotBegunException.class, () -> client.once("k")
                .fingerprint(Fingerprint.ofJson(List.of(2)))
                .run(Integer.class, claim -> 2));
        assertEquals("FINGERPRINT_MISMATCH", refused.reason());
        assertFalse(refused.isUnavailable());
    }

    @Test
    void workThatFailsFreesItsKeyOrLeavesItInDoubt() {
        var broken = new java.io.IOException("the card reader is away");
        FailedException failed = assertThrows(FailedException.class, () -> client.once("k").run(String.class, claim -> {
            throw broken;
        }));
        assertSame(broken, failed.getCause());
        assertEquals(OnFailure.RETRY, failed.rule());
        assertTrue(failed.isReleased());
        assertTrue(admin.lookup("k").hasAvailable());

        FailedException unsure = assertThrows(FailedException.class, () -> client.once("k").run(String.class, claim -> {
            throw Failure.inDoubt(broken);
        }));
        assertSame(broken, unsure.getCause());
        InDoubtException inDoubt =
                assertThrows(InDoubtException.class, () -> client.once("k").run(String.class, claim -> "no"));
        assertEquals(unsure.token(), inDoubt.token());
        assertTrue(inDoubt.getMessage().contains("the card reader is away"), inDoubt.getMessage());
    }

    @Test
    void anExceptionThatCannotBeShownGivesTheClaimBackAllTheSame() {
        var broken = new RuntimeException() {
            private static final long serialVersionUID = 1L;

            @Override
            public String getMessage() {
                throw new IllegalStateException("not even this");
            }
        };
        FailedException failed = assertThrows(FailedException.class, () -> client.once("k").run(String.class, claim -> {
            throw broken;
        }));
        assertSame(broken, failed.getCause());
        assertTrue(failed.isReleased());
        assertTrue(admin.lookup("k").hasAvailable());
    }

    @Test
    void anErrorGetsThroughOnceTheClaimIsGivenBack() {
        var panic = new AssertionError("out of range");
        assertSame(panic, assertThrows(AssertionError.class, () -> client.once("k")
                .onFailure(OnFailure.IN_DOUBT)
                .run(String.class, claim -> {
                    throw panic;
                })));
        assertTrue(admin.lookup("k").hasInDoubt());
    }

    @Test
    void aFinalErrorIsThatOfAllDuplicates() {
        Any detail = Any.pack(ErrorInfo.newBuilder().setReason("NO_FUNDS").build());
        Work<String> work = claim -> {
            throw Failure.permanent(Status.Code.FAILED_PRECONDITION, "no funds", detail);
        };
        for (boolean here : new boolean[] {true, false}) {
            FinalException last = assertThrows(FinalException.class, () -> client.once("k").run(String.class, work));
            assertEquals(Status.Code.FAILED_PRECONDITION, last.code());
            assertEquals("no funds", last.getMessage());
            assertEquals(List.of(detail), last.details());
            assertEquals(here, last.ranHere());
        }
        assertThrows(IllegalArgumentException.class, () -> Failure.permanent(Status.Code.OK, "fine"));
    }

    @Test
    void aFinalErrorOfAnotherKeyIsNoOutcomeUnlessTheWorkSaysSo() {
        Work<String> inner = claim -> client.once("inner")
                .run(String.class, of -> {
                    throw Failure.permanent(Status.Code.FAILED_PRECONDITION, "no funds");
                })
                .value();
        FailedException failed =
                assertThrows(FailedException.class, () -> client.once("outer").run(String.class, inner));
        assertTrue(failed.getCause() instanceof FinalException);
        assertTrue(admin.lookup("outer").hasAvailable());
        assertThrows(FinalException.class, () -> client.once("outer").run(String.class, claim -> {
            try {
                return inner.run(claim);
            } catch (FinalException error) {
                throw Failure.permanent(error.status());
            }
        }));
        assertTrue(admin.lookup("outer").hasCompleted());
    }

    @Test
    void aValueThatCannotBeStoredLeavesTheKeyInDoubt() {
        FailedException unencodable =
                assertThrows(FailedException.class, () -> client.once("k").run(Object.class, claim -> new Object()));
        assertTrue(unencodable.getCause() instanceof UnstorableException);
        assertEquals(OnFailure.IN_DOUBT, unencodable.rule());
        assertTrue(admin.lookup("k").hasInDoubt());

        FailedException large = assertThrows(FailedException.class, () -> client.once("large")
                .run(Codec.bytes(), claim -> new byte[(int) claim.maxOutcomeBytes()]));
        assertTrue(large.getCause() instanceof UnstorableException);
        assertTrue(admin.lookup("large").hasInDoubt());
    }

    @Test
    void anOutcomeOfAnotherCodecIsUnreadableAndNothingRuns() {
        client.once("k").run(Codec.text(), claim -> "text");
        UnreadableException unreadable = assertThrows(UnreadableException.class, () -> client.once("k")
                .run(Integer.class, claim -> {
                    throw new AssertionError("it ran");
                }));
        assertEquals(1, unreadable.attempt());
        assertTrue(unreadable.getMessage().contains("text/plain"), unreadable.getMessage());
    }

    @Test
    void whoWaitsInVainIsToldWhoIsAtIt() throws Exception {
        var go = new CountDownLatch(1);
        var held = client.once("k").owner("the holder").runAsync(String.class, claim -> {
            go.await();
            return "done";
        });
        admin.await("k", LookupResponse::hasInProgress);
        InProgressException busy = assertThrows(InProgressException.class, () -> client.once("k")
                .waitFor(Duration.ZERO)
                .run(String.class, claim -> "no"));
        assertEquals("the holder", busy.owner());
        go.countDown();
        assertEquals("done", held.get().value());
    }

    @Test
    void aCancelledRunKeepsItsClaimUntilItsWorkHasEnded() throws Exception {
        var started = new CountDownLatch(1);
        var go = new CountDownLatch(1);
        var run = client.once("k").lockTtl(Duration.ofSeconds(2)).runAsync(String.class, claim -> {
            started.countDown();
            go.await();
            return "paid";
        });
        started.await();
        assertTrue(run.cancel(true));
        // Past its lock TTL: it is renewed all the same.
        Thread.sleep(2_500);
        assertTrue(admin.lookup("k").hasInProgress());
        go.countDown();
        assertEquals("paid", client.once("k").run(String.class, claim -> "paid twice").value());
        assertThrows(CancellationException.class, run::get);
    }

    @Test
    void aRunThatIsCancelledWhileItWaitsNeverRuns() throws Exception {
        var go = new CountDownLatch(1);
        var held = client.once("k").runAsync(String.class, claim -> {
            go.await();
            throw Failure.retry(new IllegalStateException("not now"));
        });
        admin.await("k", LookupResponse::hasInProgress);
        var ran = new AtomicInteger();
        var waits = client.once("k").runAsync(Integer.class, claim -> ran.incrementAndGet());
        Thread.sleep(200);
        assertTrue(waits.cancel(true));
        go.countDown();
        assertThrows(ExecutionException.class, held::get);
        assertEquals("next", client.once("k").run(String.class, claim -> "next").value());
        assertEquals(0, ran.get());
    }

    @Test
    void anInterruptEndsTheWaitAndIsKept() throws Exception {
        var go = new CountDownLatch(1);
        var held = client.once("k").runAsync(String.class, claim -> {
            go.await();
            return "done";
        });
        admin.await("k", LookupResponse::hasInProgress);
        var told = new CompletableFuture<NotBegunException>();
        var kept = new CompletableFuture<Boolean>();
        var waits = new Thread(() -> {
            try {
                client.once("k").run(String.class, claim -> "no");
            } catch (NotBegunException interrupted) {
                told.complete(interrupted);
                kept.complete(Thread.currentThread().isInterrupted());
            }
        });
        waits.start();
        Thread.sleep(200);
        waits.interrupt();
        assertTrue(told.get().getCause() instanceof InterruptedException);
        assertTrue(told.get().isUnavailable());
        assertTrue(kept.get());
        go.countDown();
        assertEquals("done", held.get().value());
    }

    @Test
    void interruptedWorkGivesItsClaimBackOnceItHasStopped() throws Exception {
        var started = new CountDownLatch(1);
        var failed = new CompletableFuture<FailedException>();
        var kept = new CompletableFuture<Boolean>();
        var works = new Thread(() -> {
            try {
                client.once("k").run(String.class, claim -> {
                    started.countDown();
                    Thread.sleep(60_000);
                    return "never";
                });
            } catch (FailedException interrupted) {
                failed.complete(interrupted);
                kept.complete(Thread.currentThread().isInterrupted());
            }
        });
        works.start();
        started.await();
        works.interrupt();
        assertTrue(failed.get().getCause() instanceof InterruptedException);
        assertTrue(failed.get().isReleased());
        assertTrue(kept.get());
        assertTrue(admin.lookup("k").hasAvailable());
    }

    @Test
    void workThatIgnoresAnInterruptHasItsOutcomeStored() {
        Done<String> done = client.once("k").run(String.class, claim -> {
            Thread.currentThread().interrupt();
            return "paid";
        });
        assertTrue(Thread.interrupted());
        assertEquals("paid", done.value());
        assertTrue(admin.lookup("k").hasCompleted());
    }

    @Test
    void workIsInterruptedWhenItsClaimIsLostAndWhatItDidDoesNotCount() throws Exception {
        var signal = new AtomicReference<CompletableFuture<Lost>>();
        ClaimLostException lost = assertThrows(ClaimLostException.class, () -> client.once("k")
                .lockTtl(Duration.ofSeconds(2))
                .run(String.class, claim -> {
                    signal.set(claim.whenLost());
                    admin.delete("k", claim.token());
                    Thread.sleep(60_000);
                    return "never";
                }));
        assertEquals(Lost.TAKEN_OVER, lost.lost());
        assertTrue(lost.getCause() instanceof InterruptedException);
        assertFalse(Thread.interrupted(), "the interrupt was the library's own");
        assertEquals(Lost.TAKEN_OVER, signal.get().get(10, TimeUnit.SECONDS));
    }

    @Test
    void aStaleOutcomeIsNotStored() {
        ClaimLostException lost = assertThrows(ClaimLostException.class, () -> client.once("k")
                .run(String.class, claim -> {
                    admin.delete("k", claim.token());
                    return "stale";
                }));
        assertEquals(Lost.TAKEN_OVER, lost.lost());
    }

    @Test
    void aCheckpointIsHandedOverAndCountedOnFrom() {
        for (String text : new String[] {"one", "two"}) {
            assertThrows(FailedException.class, () -> client.once("k").run(String.class, claim -> {
                claim.saveCheckpoint((text + "?").getBytes());
                claim.saveCheckpoint(text.getBytes());
                throw new IllegalStateException("not now");
            }));
            assertThrows(FailedException.class, () -> client.once("k").run(String.class, claim -> {
                assertArrayEquals(text.getBytes(), claim.checkpoint());
                throw new IllegalStateException("not now");
            }));
        }
        client.once("fresh").run(String.class, claim -> {
            assertNull(claim.checkpoint());
            CallException large = assertThrows(CallException.class, () -> claim.saveCheckpoint(new byte[1 << 17]));
            assertEquals("CHECKPOINT_TOO_LARGE", large.reason());
            assertFalse(claim.lockLeft().isZero());
            return "done";
        });
    }

    @Test
    void aStageKeepsNoThreadAndOneThatIsCancelledIsInDoubt() throws Exception {
        var ends = new CompletableFuture<String>();
        var run = client.once("k").runStage(String.class, claim -> ends);
        admin.await("k", LookupResponse::hasInProgress);
        ends.complete("done");
        assertEquals("done", run.get().value());

        var cancelled = new CompletableFuture<String>();
        var other = client.once("other").runStage(String.class, claim -> cancelled);
        admin.await("other", LookupResponse::hasInProgress);
        cancelled.cancel(true);
        ExecutionException failed = assertThrows(ExecutionException.class, other::get);
        assertEquals(OnFailure.IN_DOUBT, ((FailedException) failed.getCause()).rule());
        assertTrue(admin.lookup("other").hasInDoubt());

        var none = client.once("none").runStage(String.class, claim -> null);
        assertThrows(ExecutionException.class, none::get);
        assertTrue(admin.lookup("none").hasInDoubt());
    }
}
