package dev.onced.client;

/**
 * The key could not be claimed: it was refused, no server answered in time, or the caller gave up. Nothing ran.
 *
 * @serial exclude
 */
public final class NotBegunException extends OncedException {
    private static final long serialVersionUID = 1L;

    private final boolean unavailable;

    NotBegunException(CallException cause) {
        super(cause.getMessage(), cause);
        this.unavailable = cause.isUnavailable();
    }

    private NotBegunException(String message, Throwable cause, boolean unavailable) {
        super(message, cause);
        this.unavailable = unavailable;
    }

    /** The client was closed, or its caller gave up: another may ask. */
    static NotBegunException givenUp(String message, Throwable cause) {
        return new NotBegunException(message, cause, true);
    }

    /** For want of something here. */
    static NotBegunException failed(String message, Throwable cause) {
        return new NotBegunException(message, cause, false);
    }

    /**
     * Whether onced could not be asked, so that trying again later may help.
     *
     * @return false if it was refused; true also if the client was closed, or the thread that waited was interrupted
     */
    public boolean isUnavailable() {
        return unavailable;
    }
}
