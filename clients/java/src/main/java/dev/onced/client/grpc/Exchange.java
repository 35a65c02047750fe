package dev.onced.client.grpc;

import com.google.protobuf.ByteString;
import dev.onced.client.Claim;
import dev.onced.client.ClaimLostException;
import dev.onced.client.Codec;
import dev.onced.client.Done;
import dev.onced.client.FailedException;
import dev.onced.client.Failure;
import dev.onced.client.FinalException;
import dev.onced.client.InDoubtException;
import dev.onced.client.InProgressException;
import dev.onced.client.NotBegunException;
import dev.onced.client.NotStoredException;
import dev.onced.client.Once;
import dev.onced.client.OncedException;
import dev.onced.client.UnstorableException;
import dev.onced.client.Verdict;
import dev.onced.v1.Outcome;
import io.grpc.Context;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.ServerCall;
import io.grpc.ServerCallHandler;
import io.grpc.Status;
import io.grpc.StatusException;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.util.concurrent.CancellationException;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionStage;
import java.util.concurrent.atomic.AtomicReference;
import java.util.function.Function;

/** One call with a key. */
final class Exchange<Q, A> extends ServerCall.Listener<Q> {
    private static final String CONTENT_TYPE = "application/grpc";
    private static final Metadata.Key<String> REPLAYED =
            Metadata.Key.of("idempotent-replayed", Metadata.ASCII_STRING_MARSHALLER);
    private static final System.Logger LOG = System.getLogger(IdempotencyInterceptor.class.getName());

    /**
     * What was asked.
     *
     * @param message the request
     * @param bytes its encoding
     */
    record Request<Q>(Q message, byte[] bytes) {}

    private final ServerCall<Q, A> call;
    private final Metadata headers;
    private final ServerCallHandler<Q, A> next;
    private final int largest;
    private final Function<Request<Q>, Once> options;
    private final MethodDescriptor<Q, A> method;
    private Q message;
    private CompletableFuture<Done<Reply<A>>> run = CompletableFuture.completedFuture(null);
    /** What the handler answered, once it has. */
    private volatile Reply<A> reply;

    Exchange(
            ServerCall<Q, A> call,
            Metadata headers,
            ServerCallHandler<Q, A> next,
            int largest,
            Function<Request<Q>, Once> options) {
        this.call = call;
        this.headers = headers;
        this.next = next;
        this.largest = largest;
        this.options = options;
        this.method = call.getMethodDescriptor();
    }

    @Override
    public void onMessage(Q message) {
        if (this.message != null) {
            refuse(Status.INTERNAL.withDescription("a method that does not stream got two messages"));
            return;
        }
        this.message = message;
    }

    @Override
    public void onHalfClose() {
        if (message == null) {
            refuse(Status.INTERNAL.withDescription("the call has no message"));
            return;
        }
        byte[] bytes = encoded(method.streamRequest(message));
        if (bytes.length > largest) {
            StatusException tooLarge = Refused.REQUEST_TOO_LARGE.because("at most " + largest + " bytes are taken");
            close(new Metadata(), null, tooLarge.getStatus(), tooLarge.getTrailers());
            return;
        }
        // The handler does not stop when its caller hangs up, or has no more time.
        Context context = Context.current().fork();
        Once once = options.apply(new Request<>(message, bytes));
        run = once.runStage(codec(), claim -> handle(claim, context));
        run.whenComplete(this::ended);
    }

    /** Gives up waiting for the claim. A handler that has begun goes on. */
    @Override
    public void onCancel() {
        run.cancel(true);
    }

    private void refuse(Status status) {
        close(new Metadata(), null, status, new Metadata());
    }

    private CompletionStage<Reply<A>> handle(Claim claim, Context context) throws Exception {
        var verdict = new AtomicReference<Verdict>();
        var ended = new CompletableFuture<Reply<A>>();
        Context inside = context.withValue(IdempotencyInterceptor.CLAIM, claim)
                .withValue(IdempotencyInterceptor.VERDICT, verdict);
        inside.run(() -> {
            try {
                ServerCall.Listener<Q> handler = next.startCall(new KeptCall<>(call, ended), headers);
                handler.onReady();
                handler.onMessage(message);
                handler.onHalfClose();
                ended.whenComplete((done, error) -> inside.run(handler::onComplete));
            } catch (Throwable thrown) {
                // As grpc answers for a handler that throws.
                LOG.log(System.Logger.Level.WARNING, "a handler threw", thrown);
                Metadata trailers = Status.trailersFromThrowable(thrown);
                Status status = thrown instanceof StatusRuntimeException known ? known.getStatus() : Status.UNKNOWN;
                ended.complete(new Reply<>(new Metadata(), null, status, trailers == null ? new Metadata() : trailers));
            }
        });
        return ended.thenApply(done -> {
            reply = done;
            return judged(done, verdict.get());
        });
    }

    /** What is stored of an answer; what is not is thrown. */
    private Reply<A> judged(Reply<A> done, Verdict verdict) {
        boolean stored = verdict == null ? done.isOk() || done.isFinal() : verdict == Verdict.STORE;
        if (stored && done.isOk()) {
            return done;
        } else if (stored && !done.status().isOk()) {
            throw Failure.permanent(whole(done));
        }
        var unstored = new StatusException(done.status(), done.trailers());
        if (verdict == Verdict.IN_DOUBT) {
            throw Failure.inDoubt(unstored);
        } else if (verdict == Verdict.RETRY || done.isUnseen()) {
            throw Failure.retry(unstored);
        }
        throw new StatusRuntimeException(done.status(), done.trailers());
    }

    /** An error with its details, unless they are of another error, or garbled. */
    private static com.google.rpc.Status whole(Reply<?> failed) {
        try {
            return StatusProto.fromStatusAndTrailers(failed.status(), failed.trailers());
        } catch (IllegalArgumentException disagree) {
            LOG.log(System.Logger.Level.WARNING, "an error is stored without its details: {0}", disagree.getMessage());
            return StatusProto.fromStatusAndTrailers(failed.status(), null);
        }
    }

    private void ended(Done<Reply<A>> done, Throwable error) {
        if (error instanceof CancellationException) {
            return; // Nobody waits for the answer any more.
        }
        if (error == null && done.ranHere()) {
            answer(reply);
        } else if (error == null) {
            var replayed = new Metadata();
            replayed.put(REPLAYED, "true");
            close(replayed, done.value().message(), Status.OK, new Metadata());
        } else if (error instanceof FinalException last && !last.ranHere()) {
            var replayed = new Metadata();
            replayed.put(REPLAYED, "true");
            StatusException status = StatusProto.toStatusException(last.status());
            close(replayed, null, status.getStatus(), status.getTrailers());
        } else if (reply != null && !isUnstorable(error) && !(error instanceof ClaimLostException)) {
            if (error instanceof NotStoredException || error instanceof FailedException f && !f.isReleased()) {
                LOG.log(System.Logger.Level.WARNING, "what became of a key is unknown", error);
            }
            answer(reply);
        } else {
            StatusException refused = refusal(error);
            close(new Metadata(), null, refused.getStatus(), refused.getTrailers());
        }
    }

    private static boolean isUnstorable(Throwable error) {
        return error instanceof FailedException && error.getCause() instanceof UnstorableException;
    }

    private static StatusException refusal(Throwable error) {
        if (isUnstorable(error)) {
            LOG.log(System.Logger.Level.ERROR, "a call was carried out, and its key is in doubt", error);
            return Refused.RESPONSE_NOT_STORABLE.because(error.getCause().getMessage());
        } else if (error instanceof InProgressException) {
            return Refused.REQUEST_IN_PROGRESS.because("the same call is still being answered");
        } else if (error instanceof ClaimLostException) {
            return Refused.CLAIM_LOST.because("another attempt took over; its answer is what counts");
        } else if (error instanceof InDoubtException) {
            return Refused.IN_DOUBT.because(error.getMessage());
        } else if (error instanceof OncedException refused && "FINGERPRINT_MISMATCH".equals(refused.reason())) {
            return Refused.FINGERPRINT_MISMATCH.because("the idempotency-key was used for another request");
        } else if (error instanceof NotBegunException notBegun && notBegun.isUnavailable()) {
            LOG.log(System.Logger.Level.WARNING, "onced cannot be asked", error);
            return Refused.UNAVAILABLE.because("whether the call was carried out before cannot be asked");
        }
        LOG.log(System.Logger.Level.ERROR, "onced refused a call", error);
        return Refused.REFUSED.because("the call was not carried out; the log of the service says why");
    }

    private void answer(Reply<A> answer) {
        close(answer.headers(), answer.message(), answer.status(), answer.trailers());
    }

    private void close(Metadata headers, A message, Status status, Metadata trailers) {
        try {
            if (!call.isCancelled()) {
                call.sendHeaders(headers);
                if (message != null && status.isOk()) {
                    call.sendMessage(message);
                }
                call.close(status, trailers == null ? new Metadata() : trailers);
            }
        } catch (IllegalStateException hungUp) {
            LOG.log(System.Logger.Level.DEBUG, "nobody waits for an answer any more", hungUp);
        }
    }

    private Codec<Reply<A>> codec() {
        return new Codec<>() {
            @Override
            public Outcome encode(Reply<A> done) {
                return Outcome.newBuilder()
                        .setResponse(ByteString.copyFrom(encoded(method.streamResponse(done.message()))))
                        .setContentType(CONTENT_TYPE)
                        .build();
            }

            @Override
            public Reply<A> decode(Outcome outcome) {
                String type = outcome.getContentType();
                if (!type.isEmpty() && !type.equals(CONTENT_TYPE)) {
                    throw new IllegalArgumentException("it is no answer to a gRPC call, but " + type);
                }
                A message = method.parseResponse(outcome.getResponse().newInput());
                return new Reply<>(new Metadata(), message, Status.OK, new Metadata());
            }
        };
    }

    private static byte[] encoded(InputStream stream) {
        try (stream) {
            return stream.readAllBytes();
        } catch (IOException impossible) {
            throw new UncheckedIOException(impossible);
        }
    }
}
