package dev.onced.client;

import io.grpc.Status;

/**
 * A call to the servers failed: one of them refused it, or none could do it in time.
 *
 * @serial exclude
 */
public final class CallException extends OncedException {
    private static final long serialVersionUID = 1L;

    private final Status.Code code;
    private final String reason;
    private final boolean unavailable;
    private final boolean setUpWrong;
    private final boolean mayBeDone;

    CallException(String message, Refusal refusal, boolean unavailable, boolean setUpWrong, boolean mayBeDone) {
        super(message, refusal.cause());
        this.code = refusal.code();
        this.reason = refusal.reason();
        this.unavailable = unavailable;
        this.setUpWrong = setUpWrong;
        this.mayBeDone = mayBeDone;
    }

    /** Whether an earlier attempt may have been carried out is not answered by a refusal of the last one. */
    static CallException refused(Refusal refusal, boolean setUpWrong, boolean mayBeDone) {
        return new CallException(refusal.toString(), refusal, false, setUpWrong, mayBeDone);
    }

    static CallException answerUnknown(String call) {
        String message = "the server's answer to " + call
                + " holds nothing known here; is the server newer than this client?";
        return refused(new Refusal(Status.Code.INTERNAL, null, message, null, true), false, true);
    }

    @Override
    public String reason() {
        return reason;
    }

    /**
     * The status code of the last answer, or what stands for the want of one.
     *
     * @return never OK
     */
    public Status.Code code() {
        return code;
    }

    /**
     * Whether no server could do it before the time was up. Then it is unknown what became of the call, and the same
     * call may be sent again.
     *
     * @return false if it was refused: the same call would be refused again
     */
    public boolean isUnavailable() {
        return unavailable;
    }

    /**
     * Whether the connection was set up wrong, such as TLS to a plaintext port: the message says what to do.
     *
     * @return true if no later call would fare better
     */
    public boolean isSetUpWrong() {
        return setUpWrong;
    }

    /** Whether an attempt that nobody heard of may have been carried out. */
    boolean mayBeDone() {
        return mayBeDone;
    }

    /** Whether the claim that the call named is no longer the caller's. */
    boolean isClaimLost() {
        return !unavailable && ("CLAIM_LOST".equals(reason) || "RECORD_NOT_FOUND".equals(reason));
    }
}
