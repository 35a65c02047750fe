package dev.onced.client;

import dev.onced.v1.Completed;

/** The key has an outcome that the codec cannot read. Nothing ran. */
public final class UnreadableException extends OncedException {
    private static final long serialVersionUID = 1L;

    UnreadableException(String why, Throwable cause, Completed completed) {
        super(
                "the outcome that is stored cannot be read: " + why,
                cause,
                completed.getOwner(),
                completed.getAttempt(),
                completed.getFencingToken());
    }
}
