package dev.onced.client;

/** The key could not be claimed: it was refused, no server answered in time, or the caller gave up. Nothing ran. */
public final class NotBegunException extends OncedException {
    private static final long serialVersionUID = 1L;

    NotBegunException(CallException cause) {
        super(cause.getMessage(), cause);
    }

    NotBegunException(String message, Throwable cause) {
        super(message, cause);
    }

    /**
     * Whether onced could not be asked, so that trying again later may help.
     *
     * @return false if it was refused, or if the caller gave up
     */
    public boolean isUnavailable() {
        return getCause() instanceof CallException call && call.isUnavailable();
    }
}
