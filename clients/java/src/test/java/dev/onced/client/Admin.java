package dev.onced.client;

import dev.onced.v1.AdminServiceGrpc;
import dev.onced.v1.DeleteRequest;
import dev.onced.v1.IdempotencyServiceGrpc;
import dev.onced.v1.LookupRequest;
import dev.onced.v1.LookupResponse;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import java.util.function.Predicate;

/** Looks at records past the client. */
public final class Admin implements AutoCloseable {
    private final ManagedChannel channel;

    public Admin(String address) {
        channel = ManagedChannelBuilder.forTarget(address).usePlaintext().build();
    }

    public LookupResponse lookup(String key) {
        return IdempotencyServiceGrpc.newBlockingStub(channel)
                .lookup(LookupRequest.newBuilder().setNamespace("default").setKey(key).build());
    }

    /** Looks until the record is so. */
    public LookupResponse await(String key, Predicate<LookupResponse> is) throws InterruptedException {
        for (int looks = 0; ; looks++) {
            LookupResponse found = LookupResponse.getDefaultInstance();
            try {
                found = lookup(key);
            } catch (StatusRuntimeException absent) {
                if (absent.getStatus().getCode() != Status.Code.NOT_FOUND) {
                    throw absent;
                }
            }
            if (is.test(found)) {
                return found;
            }
            if (looks == 600) {
                throw new AssertionError("still " + found);
            }
            Thread.sleep(50);
        }
    }

    public void delete(String key, long token) {
        AdminServiceGrpc.newBlockingStub(channel)
                .delete(DeleteRequest.newBuilder()
                        .setNamespace("default")
                        .setKey(key)
                        .setFencingToken(token)
                        .setForce(true)
                        .build());
    }

    @Override
    public void close() {
        channel.shutdownNow();
    }
}
