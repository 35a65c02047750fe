package dev.onced.client.grpc;

import com.google.protobuf.Any;
import com.google.protobuf.Duration;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import io.grpc.Status;
import io.grpc.StatusException;
import io.grpc.protobuf.StatusProto;

/** What is refused, and how. */
enum Refused {
    IDEMPOTENCY_KEY_MISSING(Status.Code.INVALID_ARGUMENT, false),
    IDEMPOTENCY_KEY_INVALID(Status.Code.INVALID_ARGUMENT, false),
    SCOPE_MISSING(Status.Code.INVALID_ARGUMENT, false),
    REQUEST_IN_PROGRESS(Status.Code.ABORTED, true),
    CLAIM_LOST(Status.Code.ABORTED, true),
    IN_DOUBT(Status.Code.FAILED_PRECONDITION, false),
    REQUEST_TOO_LARGE(Status.Code.RESOURCE_EXHAUSTED, false),
    FINGERPRINT_MISMATCH(Status.Code.FAILED_PRECONDITION, false),
    RESPONSE_NOT_STORABLE(Status.Code.INTERNAL, false),
    REFUSED(Status.Code.INTERNAL, false),
    UNAVAILABLE(Status.Code.UNAVAILABLE, true);

    private final Status.Code code;
    private final boolean later;

    Refused(Status.Code code, boolean later) {
        this.code = code;
        this.later = later;
    }

    StatusException because(String message) {
        var status = com.google.rpc.Status.newBuilder()
                .setCode(code.value())
                .setMessage(message)
                .addDetails(Any.pack(
                        ErrorInfo.newBuilder().setDomain("onced.dev").setReason(name()).build()));
        if (later) {
            status.addDetails(Any.pack(
                    RetryInfo.newBuilder().setRetryDelay(Duration.newBuilder().setSeconds(1)).build()));
        }
        return StatusProto.toStatusException(status.build());
    }
}
