package dev.onced.client;

import dev.onced.v1.InDoubt;

/**
 * What an earlier claim did is unknown, and nobody may run the key until an operator has resolved its token.
 *
 * @serial exclude
 */
public final class InDoubtException extends OncedException {
    private static final long serialVersionUID = 1L;

    private final String reason;

    InDoubtException(InDoubt last) {
        super(
                "what " + last.getOwner() + " did is unknown (" + last.getReason()
                        + "); an operator must resolve token " + Long.toUnsignedString(last.getFencingToken()),
                null,
                last.getOwner(),
                last.getAttempt(),
                last.getFencingToken());
        this.reason = last.getReason();
    }

    @Override
    public String reason() {
        return reason;
    }
}
