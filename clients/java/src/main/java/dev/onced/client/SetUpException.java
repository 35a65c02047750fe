package dev.onced.client;

/** What the client was given cannot be used: the address of a server, a certificate, or a token. */
public final class SetUpException extends OncedException {
    private static final long serialVersionUID = 1L;

    SetUpException(String message) {
        super(message, null);
    }

    SetUpException(String message, Throwable cause) {
        super(message, cause);
    }
}
