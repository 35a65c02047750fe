package dev.onced.client.grpc;

import io.grpc.ForwardingServerCall;
import io.grpc.Metadata;
import io.grpc.ServerCall;
import io.grpc.Status;
import java.util.concurrent.CompletableFuture;

/** A call whose answer is kept until it is stored. Its handler never hears that the caller has hung up. */
final class KeptCall<Q, A> extends ForwardingServerCall.SimpleForwardingServerCall<Q, A> {
    private final CompletableFuture<Reply<A>> ended;
    private Metadata headers = new Metadata();
    private A message;

    KeptCall(ServerCall<Q, A> call, CompletableFuture<Reply<A>> ended) {
        super(call);
        this.ended = ended;
    }

    @Override
    public void request(int messages) {
        // The only one is here.
    }

    @Override
    public void sendHeaders(Metadata headers) {
        this.headers = headers;
    }

    @Override
    public void sendMessage(A message) {
        this.message = message;
    }

    @Override
    public void close(Status status, Metadata trailers) {
        ended.complete(new Reply<>(headers, message, status, trailers));
    }

    @Override
    public boolean isReady() {
        return true;
    }

    @Override
    public boolean isCancelled() {
        return false;
    }
}
