package dev.onced.client;

import com.google.protobuf.Any;
import dev.onced.v1.Completed;
import io.grpc.Status;
import java.util.List;

/**
 * The work failed for good, here or in another call. Every duplicate gets the same.
 *
 * @serial exclude
 */
public final class FinalException extends OncedException {
    private static final long serialVersionUID = 1L;

    private final com.google.rpc.Status status;
    private final boolean ranHere;
    private final boolean isProtected;

    FinalException(com.google.rpc.Status status, Completed completed, boolean ranHere, Throwable work) {
        super(
                status.getMessage(),
                work,
                completed == null ? null : completed.getOwner(),
                completed == null ? 0 : completed.getAttempt(),
                completed == null ? 0 : completed.getFencingToken());
        this.status = status;
        this.ranHere = ranHere;
        this.isProtected = completed != null;
    }

    /**
     * What kind of failure it is.
     *
     * @return never OK
     */
    public Status.Code code() {
        return Status.fromCodeValue(status.getCode()).getCode();
    }

    /**
     * What else was said of it.
     *
     * @return as it was stored
     */
    public List<Any> details() {
        return status.getDetailsList();
    }

    /**
     * Code, message and details as they were stored.
     *
     * @return the whole error
     */
    public com.google.rpc.Status status() {
        return status;
    }

    /**
     * Whether the work ran in this call.
     *
     * @return false if this is the outcome of another one
     */
    public boolean ranHere() {
        return ranHere;
    }

    /**
     * Whether the work ran under a claim.
     *
     * @return false if the caller failed open: nothing is stored then
     */
    public boolean isProtected() {
        return isProtected;
    }

    @Override
    public String reason() {
        return null;
    }
}
