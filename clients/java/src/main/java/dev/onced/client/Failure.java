package dev.onced.client;

import com.google.protobuf.Any;
import io.grpc.Status;
import java.util.List;

/**
 * Thrown by work to say what becomes of its key. Any other exception leaves that to {@link Once#onFailure}.
 *
 * <pre>{@code throw Failure.permanent(Status.Code.FAILED_PRECONDITION, "the card has expired");}</pre>
 *
 * @serial exclude
 */
public final class Failure extends RuntimeException {
    private static final long serialVersionUID = 1L;

    private final OnFailure rule;
    private final com.google.rpc.Status status;

    private Failure(Throwable cause, OnFailure rule) {
        super(FailedException.text(cause), cause);
        this.rule = rule;
        this.status = null;
    }

    private Failure(com.google.rpc.Status status) {
        super(status.getMessage());
        this.rule = null;
        this.status = status;
    }

    /**
     * Nothing happened, or it is safe to do again: the key is free for the next caller.
     *
     * @param cause what went wrong
     * @return what to throw
     */
    public static Failure retry(Throwable cause) {
        return new Failure(cause, OnFailure.RETRY);
    }

    /**
     * What happened is unknown: nobody runs the key until an operator has resolved it.
     *
     * @param cause what went wrong
     * @return what to throw
     */
    public static Failure inDoubt(Throwable cause) {
        return new Failure(cause, OnFailure.IN_DOUBT);
    }

    /**
     * It failed for good: this is the outcome, and every duplicate gets it as a {@link FinalException}.
     *
     * @param code the kind of failure; not OK
     * @param message for people
     * @param details more, for programs
     * @return what to throw
     */
    public static Failure permanent(Status.Code code, String message, Any... details) {
        return permanent(com.google.rpc.Status.newBuilder()
                .setCode(code.value())
                .setMessage(message)
                .addAllDetails(List.of(details))
                .build());
    }

    /**
     * It failed for good, as {@link #permanent(Status.Code, String, Any...)} says.
     *
     * @param status the whole error; its code is 1 to 16
     * @return what to throw
     */
    public static Failure permanent(com.google.rpc.Status status) {
        if (status.getCode() < 1 || status.getCode() > 16) {
            throw new IllegalArgumentException("a failure has a code of 1 to 16, not " + status.getCode());
        }
        return new Failure(status);
    }

    /** None if it is for good. */
    OnFailure rule() {
        return rule;
    }

    /** None if it is not for good. */
    com.google.rpc.Status status() {
        return status;
    }
}
