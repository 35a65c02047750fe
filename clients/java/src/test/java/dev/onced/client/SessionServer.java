package dev.onced.client;

import dev.onced.v1.BeginRequest;
import dev.onced.v1.BeginResponse;
import dev.onced.v1.CompleteRequest;
import dev.onced.v1.CompleteResponse;
import dev.onced.v1.Completed;
import dev.onced.v1.IdempotencyServiceGrpc;
import dev.onced.v1.ReleaseRequest;
import dev.onced.v1.ReleaseResponse;
import dev.onced.v1.SessionRequest;
import dev.onced.v1.SessionResponse;
import io.grpc.Context;
import io.grpc.ForwardingServerCall.SimpleForwardingServerCall;
import io.grpc.Metadata;
import io.grpc.Server;
import io.grpc.ServerCall;
import io.grpc.ServerCallHandler;
import io.grpc.ServerInterceptor;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.netty.shaded.io.grpc.netty.NettyServerBuilder;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.ServerCallStreamObserver;
import io.grpc.stub.StreamObserver;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.net.InetSocketAddress;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.function.Function;

/** A server that answers unary calls, and leaves its sessions to the test. */
final class SessionServer implements AutoCloseable {
    /** A session, as the server has it. */
    record Stream(
            BlockingQueue<SessionRequest> requests,
            CompletableFuture<Void> halfClosed,
            StreamObserver<SessionResponse> out) {
        SessionRequest take() throws InterruptedException {
            SessionRequest request = requests.poll(10, TimeUnit.SECONDS);
            if (request == null) {
                throw new AssertionError("nothing comes in the session");
            }
            return request;
        }

        void answer(SessionResponse answer) {
            out.onNext(answer);
        }
    }

    final BlockingQueue<Stream> streams = new LinkedBlockingQueue<>();
    /** Those that were unary, and how long each might take. */
    final BlockingQueue<BeginRequest> begins = new LinkedBlockingQueue<>();

    final BlockingQueue<Long> deadlines = new LinkedBlockingQueue<>();
    final AtomicInteger releases = new AtomicInteger();
    /** How many sessions were refused. */
    final AtomicInteger refused = new AtomicInteger();

    volatile Function<BeginRequest, BeginResponse> begin = request -> claim(1);
    volatile boolean holdsBegins;
    /** Why no session can be opened, if so. */
    volatile Status refusal;
    /** When sessions are answered. */
    volatile CompletableFuture<Void> headers = CompletableFuture.completedFuture(null);
    /** Whether it reads what is sent in sessions. */
    volatile boolean reads = true;
    /** Whether it ends those that the client ends. */
    volatile boolean ends = true;

    private Server server = start(0);

    static BeginResponse claim(long token) {
        return BeginResponse.newBuilder()
                .setClaim(dev.onced.v1.Claim.newBuilder()
                        .setFencingToken(token)
                        .setAttempt(1)
                        .setLockTtl(com.google.protobuf.Duration.newBuilder().setSeconds(30)))
                .build();
    }

    static StatusRuntimeException refusal(com.google.rpc.Status.Builder status) {
        return StatusProto.toStatusRuntimeException(status.build());
    }

    private Server start(int port) {
        try {
            return NettyServerBuilder.forAddress(new InetSocketAddress("127.0.0.1", port))
                    .addService(new Service())
                    .intercept(new Opener())
                    .build()
                    .start();
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        }
    }

    String address() {
        return "127.0.0.1:" + server.getPort();
    }

    /** Cuts all connections. */
    void restart() throws InterruptedException {
        int port = server.getPort();
        server.shutdownNow().awaitTermination();
        server = start(port);
    }

    @Override
    public void close() {
        server.shutdownNow();
    }

    /** Answers a session before there is anything to say in it, as onced does; or not at all. */
    private final class Opener implements ServerInterceptor {
        @Override
        public <Q, A> ServerCall.Listener<Q> interceptCall(
                ServerCall<Q, A> call, Metadata given, ServerCallHandler<Q, A> next) {
            if (!call.getMethodDescriptor().getFullMethodName().endsWith("/Session")) {
                return next.startCall(call, given);
            }
            if (refusal != null) {
                call.close(refusal, new Metadata());
                refused.incrementAndGet();
                return new ServerCall.Listener<>() {};
            }
            headers.thenRun(() -> call.sendHeaders(new Metadata()));
            return next.startCall(new SimpleForwardingServerCall<>(call) {
                @Override
                public void sendHeaders(Metadata second) {}
            }, given);
        }
    }

    private final class Service extends IdempotencyServiceGrpc.IdempotencyServiceImplBase {
        @Override
        public void begin(BeginRequest request, StreamObserver<BeginResponse> answer) {
            deadlines.add(Context.current().getDeadline().timeRemaining(TimeUnit.NANOSECONDS));
            begins.add(request);
            if (holdsBegins) {
                return;
            }
            try {
                answer.onNext(begin.apply(request));
                answer.onCompleted();
            } catch (StatusRuntimeException refused) {
                answer.onError(refused);
            }
        }

        @Override
        public void complete(CompleteRequest request, StreamObserver<CompleteResponse> answer) {
            answer.onNext(CompleteResponse.newBuilder()
                    .setCompleted(Completed.newBuilder().setFencingToken(1).setAttempt(1))
                    .build());
            answer.onCompleted();
        }

        @Override
        public void release(ReleaseRequest request, StreamObserver<ReleaseResponse> answer) {
            releases.incrementAndGet();
            answer.onNext(ReleaseResponse.getDefaultInstance());
            answer.onCompleted();
        }

        @Override
        public StreamObserver<SessionRequest> session(StreamObserver<SessionResponse> out) {
            if (!reads) {
                ((ServerCallStreamObserver<SessionResponse>) out).disableAutoRequest();
            }
            var stream = new Stream(new LinkedBlockingQueue<>(), new CompletableFuture<>(), out);
            streams.add(stream);
            return new StreamObserver<>() {
                @Override
                public void onNext(SessionRequest request) {
                    stream.requests().add(request);
                }

                @Override
                public void onError(Throwable error) {}

                @Override
                public void onCompleted() {
                    stream.halfClosed().complete(null);
                    if (ends) {
                        out.onCompleted();
                    }
                }
            };
        }
    }
}
