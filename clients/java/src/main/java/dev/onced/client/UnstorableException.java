package dev.onced.client;

/** What the work returned cannot be stored: it cannot be encoded, or is too large. The cause of a failed run. */
public final class UnstorableException extends OncedException {
    private static final long serialVersionUID = 1L;

    UnstorableException(String message, Throwable cause) {
        super(message, cause);
    }
}
