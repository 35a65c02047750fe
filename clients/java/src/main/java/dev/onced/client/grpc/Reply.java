package dev.onced.client.grpc;

import io.grpc.Metadata;
import io.grpc.Status;

/**
 * What a handler answered.
 *
 * @param headers what was sent before the message
 * @param message null if there was none
 * @param status how the call ended
 * @param trailers what was sent with that
 */
record Reply<A>(Metadata headers, A message, Status status, Metadata trailers) {
    boolean isOk() {
        return status.isOk() && message != null;
    }

    /** Whether it is the final error of all repetitions. */
    boolean isFinal() {
        return switch (status.getCode()) {
            case INVALID_ARGUMENT,
                    NOT_FOUND,
                    ALREADY_EXISTS,
                    PERMISSION_DENIED,
                    FAILED_PRECONDITION,
                    OUT_OF_RANGE,
                    UNIMPLEMENTED -> true;
            default -> false;
        };
    }

    /** Whether it says that the request was not looked at. */
    boolean isUnseen() {
        return switch (status.getCode()) {
            case UNAUTHENTICATED, RESOURCE_EXHAUSTED -> true;
            default -> false;
        };
    }
}
