package dev.onced.client;

/** There is no fingerprint of this: two readers might not agree on what it says. The message tells what is wrong. */
public final class UnfitException extends OncedException {
    private static final long serialVersionUID = 1L;

    UnfitException(String message) {
        super(message, null);
    }

    UnfitException(String message, Throwable cause) {
        super(message, cause);
    }
}
