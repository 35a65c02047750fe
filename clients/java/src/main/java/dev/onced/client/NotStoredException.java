package dev.onced.client;

import dev.onced.v1.Outcome;

/**
 * The work is done, but whether its outcome is stored is unknown, or it was refused. The claim is not given back,
 * since the outcome may be there: it lapses by itself if it is not.
 *
 * @serial exclude
 */
public final class NotStoredException extends OncedException {
    private static final long serialVersionUID = 1L;

    private final transient Outcome outcome;
    private final transient Object value;

    NotStoredException(CallException cause, Outcome outcome, Object value, Held held) {
        super(
                "the work is done, but its outcome is not known to be stored: " + cause.getMessage(),
                cause,
                null,
                held.attempt(),
                held.token());
        this.outcome = outcome;
        this.value = value;
    }

    /**
     * The outcome that was to be stored.
     *
     * @return null only after this was serialised
     */
    public Outcome outcome() {
        return outcome;
    }

    /**
     * What the work returned.
     *
     * @return null if that was null, if the work failed for good, or after this was serialised
     */
    public Object value() {
        return value;
    }
}
