package dev.onced.client.grpc;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.protobuf.Any;
import com.google.rpc.ErrorInfo;
import dev.onced.client.Admin;
import dev.onced.client.OnFailure;
import dev.onced.client.Onced;
import dev.onced.client.TestServer;
import dev.onced.client.Verdict;
import dev.onced.v1.IdempotencyServiceGrpc;
import dev.onced.v1.LookupRequest;
import dev.onced.v1.LookupResponse;
import dev.onced.v1.WatchRequest;
import dev.onced.v1.WatchResponse;
import io.grpc.CallOptions;
import io.grpc.ClientInterceptors;
import io.grpc.Context;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.Metadata;
import io.grpc.Server;
import io.grpc.ServerInterceptors;
import io.grpc.ServerServiceDefinition;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.netty.shaded.io.grpc.netty.NettyServerBuilder;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.ClientCalls;
import io.grpc.stub.MetadataUtils;
import io.grpc.stub.ServerCalls;
import io.grpc.stub.StreamObserver;
import java.net.InetSocketAddress;
import java.time.Duration;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicReference;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;

/** Before a service of another kind, which borrows messages of onced, over a real socket. */
@Timeout(60)
class IdempotencyInterceptorTest {
    private static final Metadata.Key<String> KEY =
            Metadata.Key.of("idempotency-key", Metadata.ASCII_STRING_MARSHALLER);
    private static final Metadata.Key<String> REPLAYED =
            Metadata.Key.of("idempotent-replayed", Metadata.ASCII_STRING_MARSHALLER);

    private interface Handler {
        void handle(LookupRequest request, StreamObserver<LookupResponse> answer) throws Exception;
    }

    private final TestServer onced = TestServer.start();
    private final Onced client = onced.connect();
    private final Admin admin = new Admin(onced.address());
    private final AtomicInteger handled = new AtomicInteger();
    private Server server;
    private ManagedChannel channel;

    @AfterEach
    void end() {
        admin.close();
        client.close(Duration.ZERO);
        onced.close();
        channel.shutdownNow();
        server.shutdownNow();
    }

    private void serve(IdempotencyInterceptor interceptor, Handler handler) throws Exception {
        var service = new IdempotencyServiceGrpc.IdempotencyServiceImplBase() {
            @Override
            public void lookup(LookupRequest request, StreamObserver<LookupResponse> answer) {
                handled.incrementAndGet();
                try {
                    handler.handle(request, answer);
                } catch (RuntimeException thrown) {
                    throw thrown;
                } catch (Exception thrown) {
                    throw new IllegalStateException(thrown);
                }
            }

            @Override
            public void watch(WatchRequest request, StreamObserver<WatchResponse> answer) {
                answer.onCompleted();
            }
        };
        server = NettyServerBuilder.forAddress(new InetSocketAddress("127.0.0.1", 0))
                .addService(ServerInterceptors.intercept(service, interceptor))
                .build()
                .start();
        channel = ManagedChannelBuilder.forAddress("127.0.0.1", server.getPort()).usePlaintext().build();
    }

    /** An answer and its headers. */
    private record Called(LookupResponse response, Metadata headers) {}

    private Called call(String request, String... keys) {
        var headers = new Metadata();
        for (String key : keys) {
            headers.put(KEY, key);
        }
        headers.merge(more);
        var got = new AtomicReference<Metadata>();
        var stub = IdempotencyServiceGrpc.newBlockingStub(channel)
                .withInterceptors(
                        MetadataUtils.newAttachHeadersInterceptor(headers),
                        MetadataUtils.newCaptureMetadataInterceptor(got, new AtomicReference<>()));
        try {
            return new Called(stub.lookup(LookupRequest.newBuilder().setKey(request).build()), got.get());
        } catch (StatusRuntimeException refused) {
            replayed = got.get() != null && got.get().containsKey(REPLAYED);
            throw refused;
        }
    }

    private boolean replayed;
    /** Sent with each call. */
    private final Metadata more = new Metadata();

    private static LookupResponse answer(String owner) {
        return LookupResponse.newBuilder()
                .setAvailable(dev.onced.v1.Available.newBuilder().setOwner(owner))
                .build();
    }

    private void isRefused(Status.Code code, String reason, String request, String... keys) throws Exception {
        var refused = assertThrows(StatusRuntimeException.class, () -> call(request, keys));
        var status = StatusProto.fromThrowable(refused);
        assertNotNull(status);
        ErrorInfo info = status.getDetails(0).unpack(ErrorInfo.class);
        assertEquals(reason, info.getReason(), refused::toString);
        assertEquals("onced.dev", info.getDomain());
        assertEquals(code, refused.getStatus().getCode());
    }

    @Test
    void aRepetitionGetsTheSameAnswer() throws Exception {
        serve(IdempotencyInterceptor.of(client), (request, answer) -> {
            answer.onNext(answer("by " + IdempotencyInterceptor.claim().token()));
            answer.onCompleted();
        });
        Called first = call("a", "\"k 1\"");
        Called second = call("a", "\"k 1\"");
        assertEquals(first.response(), second.response());
        assertEquals(1, handled.get());
        assertTrue(!first.headers().containsKey(REPLAYED));
        assertEquals("true", second.headers().get(REPLAYED));
        var stored = admin.lookup("k 1").getCompleted();
        assertEquals("application/grpc", stored.getOutcome().getContentType());
        assertEquals("by " + stored.getFencingToken(), first.response().getAvailable().getOwner());
    }

    @Test
    void whatIsAskedWronglyIsRefused() throws Exception {
        serve(IdempotencyInterceptor.builder(client).largestRequest(100).build(), (request, answer) -> {
            answer.onNext(answer("a"));
            answer.onCompleted();
        });
        isRefused(Status.Code.INVALID_ARGUMENT, "IDEMPOTENCY_KEY_MISSING", "a");
        isRefused(Status.Code.INVALID_ARGUMENT, "IDEMPOTENCY_KEY_INVALID", "a", "\"open");
        isRefused(Status.Code.INVALID_ARGUMENT, "IDEMPOTENCY_KEY_INVALID", "a", "one", "two");
        isRefused(Status.Code.RESOURCE_EXHAUSTED, "REQUEST_TOO_LARGE", "a".repeat(101), "k");
        assertEquals(0, handled.get());
        call("a", "k");
        isRefused(Status.Code.FAILED_PRECONDITION, "FINGERPRINT_MISMATCH", "b", "k");
        assertEquals(1, handled.get());

        var watch = IdempotencyServiceGrpc.newBlockingStub(channel);
        assertTrue(!watch.watch(WatchRequest.getDefaultInstance()).hasNext());
        var headers = new Metadata();
        headers.put(KEY, "k");
        var keyed = watch.withInterceptors(MetadataUtils.newAttachHeadersInterceptor(headers))
                .watch(WatchRequest.getDefaultInstance());
        assertEquals(
                Status.Code.INVALID_ARGUMENT,
                assertThrows(StatusRuntimeException.class, keyed::hasNext).getStatus().getCode());
    }

    @Test
    void errorsAreStoredFreeTheKeyOrGoByTheRule() throws Exception {
        Any detail = Any.pack(ErrorInfo.newBuilder().setReason("NO_FUNDS").build());
        serve(IdempotencyInterceptor.builder(client).onFailure(OnFailure.IN_DOUBT).build(), (request, answer) -> {
            if (request.getKey().equals("throws")) {
                throw new IllegalStateException("a bug");
            }
            answer.onError(StatusProto.toStatusException(com.google.rpc.Status.newBuilder()
                    .setCode(Status.Code.valueOf(request.getKey()).value())
                    .setMessage("no")
                    .addDetails(detail)
                    .build()));
        });
        for (int i = 0; i < 2; i++) {
            var last = assertThrows(StatusRuntimeException.class, () -> call("FAILED_PRECONDITION", "final"));
            assertEquals("no", last.getStatus().getDescription());
            assertEquals(detail, StatusProto.fromThrowable(last).getDetails(0));
            assertEquals(i == 1, replayed);
        }
        assertEquals(1, handled.get());
        assertThrows(StatusRuntimeException.class, () -> call("RESOURCE_EXHAUSTED", "free"));
        assertTrue(admin.lookup("free").hasAvailable());
        var failed = assertThrows(StatusRuntimeException.class, () -> call("INTERNAL", "failed"));
        assertEquals(Status.Code.INTERNAL, failed.getStatus().getCode());
        isRefused(Status.Code.FAILED_PRECONDITION, "IN_DOUBT", "INTERNAL", "failed");
        var thrown = assertThrows(StatusRuntimeException.class, () -> call("throws", "thrown"));
        assertEquals(Status.Code.UNKNOWN, thrown.getStatus().getCode());
        assertTrue(admin.lookup("thrown").hasInDoubt());
    }

    @Test
    void theHandlersWordOutranksTheRules() throws Exception {
        serve(IdempotencyInterceptor.of(client), (request, answer) -> {
            IdempotencyInterceptor.say(Verdict.valueOf(request.getKey()));
            answer.onError(Status.INTERNAL.asException());
        });
        assertThrows(StatusRuntimeException.class, () -> call("STORE", "a"));
        assertTrue(admin.lookup("a").hasCompleted());
        assertThrows(StatusRuntimeException.class, () -> call("IN_DOUBT", "b"));
        assertTrue(admin.lookup("b").hasInDoubt());
    }

    @Test
    void aHandlerWhoseCallerHangsUpRunsToItsEnd() throws Exception {
        var started = new CountDownLatch(1);
        var go = new CountDownLatch(1);
        var cancelled = new AtomicReference<Boolean>();
        serve(IdempotencyInterceptor.of(client), (request, answer) -> {
            started.countDown();
            go.await();
            cancelled.set(Context.current().isCancelled());
            answer.onNext(answer("paid"));
            answer.onCompleted();
        });
        var headers = new Metadata();
        headers.put(KEY, "k");
        var hangsUp = ClientInterceptors.intercept(channel, MetadataUtils.newAttachHeadersInterceptor(headers));
        var pending = ClientCalls.futureUnaryCall(
                hangsUp.newCall(IdempotencyServiceGrpc.getLookupMethod(), CallOptions.DEFAULT),
                LookupRequest.newBuilder().setKey("a").build());
        started.await();
        pending.cancel(true);
        Thread.sleep(300);
        assertTrue(admin.lookup("k").hasInProgress());
        go.countDown();
        admin.await("k", LookupResponse::hasCompleted);
        assertEquals(Boolean.FALSE, cancelled.get());
        assertEquals("paid", call("a", "k").response().getAvailable().getOwner());
        assertEquals(1, handled.get());
    }

    @Test
    void withoutOncedNothingRuns() throws Exception {
        onced.kill();
        try (Onced impatient = Onced.builder(onced.address()).timeout(Duration.ofMillis(300)).build()) {
            serve(IdempotencyInterceptor.of(impatient), (request, answer) -> answer.onCompleted());
            isRefused(Status.Code.UNAVAILABLE, "UNAVAILABLE", "a", "k");
            assertEquals(0, handled.get());
        }
    }

    @Test
    void aScopeIsOneOrNone() throws Exception {
        serve(IdempotencyInterceptor.builder(client).scopeHeader("x-tenant").build(), (request, answer) -> {
            answer.onNext(answer("a"));
            answer.onCompleted();
        });
        isRefused(Status.Code.INVALID_ARGUMENT, "SCOPE_MISSING", "a", "k");
        var tenant = Metadata.Key.of("x-tenant", Metadata.ASCII_STRING_MARSHALLER);
        more.put(tenant, "a");
        call("a", "k");
        more.put(tenant, "b");
        isRefused(Status.Code.INVALID_ARGUMENT, "SCOPE_MISSING", "a", "k");
        assertEquals(1, handled.get());
    }

    @Test
    void healthAndReflectionAreAskedWithoutAKey() throws Exception {
        var health = IdempotencyServiceGrpc.getLookupMethod().toBuilder()
                .setFullMethodName("grpc.health.v1.Health/Check")
                .build();
        var service = ServerServiceDefinition.builder("grpc.health.v1.Health")
                .addMethod(health, ServerCalls.<LookupRequest, LookupResponse>asyncUnaryCall((request, answer) -> {
                    answer.onNext(answer("well"));
                    answer.onCompleted();
                }))
                .build();
        server = NettyServerBuilder.forAddress(new InetSocketAddress("127.0.0.1", 0))
                .addService(ServerInterceptors.intercept(service, IdempotencyInterceptor.of(client)))
                .build()
                .start();
        channel = ManagedChannelBuilder.forAddress("127.0.0.1", server.getPort()).usePlaintext().build();
        var asked = LookupRequest.getDefaultInstance();
        assertEquals(answer("well"), ClientCalls.blockingUnaryCall(channel, health, CallOptions.DEFAULT, asked));
    }

    @Test
    void behindAClosedClientNothingRunsAndIsWorthAskingAgain() throws Exception {
        serve(IdempotencyInterceptor.of(client), (request, answer) -> answer.onCompleted());
        client.close(Duration.ZERO);
        isRefused(Status.Code.UNAVAILABLE, "UNAVAILABLE", "a", "k");
        assertEquals(0, handled.get());
    }

    @Test
    void anErrorWhoseDetailsAreOfAnotherIsStoredWithoutThem() throws Exception {
        serve(IdempotencyInterceptor.of(client), (request, answer) -> {
            Metadata other = StatusProto.toStatusException(com.google.rpc.Status.newBuilder()
                            .setCode(Status.Code.ABORTED.value())
                            .addDetails(Any.pack(ErrorInfo.getDefaultInstance()))
                            .build())
                    .getTrailers();
            answer.onError(Status.NOT_FOUND.withDescription("none").asException(other));
        });
        for (int i = 0; i < 2; i++) {
            var last = assertThrows(StatusRuntimeException.class, () -> call("a", "k"));
            assertEquals(Status.Code.NOT_FOUND, last.getStatus().getCode());
            assertEquals("none", last.getStatus().getDescription());
            assertEquals(i == 1, replayed);
        }
        assertEquals(1, handled.get());
        assertEquals(0, admin.lookup("k").getCompleted().getOutcome().getError().getDetailsCount());
    }
}
