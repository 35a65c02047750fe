package dev.onced.client;

/**
 * The work failed, and its claim was given back. The cause is what the work threw.
 *
 * @serial exclude
 */
public final class FailedException extends OncedException {
    private static final long serialVersionUID = 1L;

    private final OnFailure rule;
    private final boolean released;
    private final Lost lost;

    FailedException(Throwable work, OnFailure rule, CallException notReleased, Held held) {
        super(message(work, rule, notReleased), work, null, held.attempt(), held.token());
        this.rule = rule;
        this.released = notReleased == null;
        this.lost = held.lostBefore();
        if (notReleased != null) {
            addSuppressed(notReleased);
        }
    }

    /** Of work that ran without a claim. */
    FailedException(Throwable work, OnFailure rule) {
        super("the work failed: " + text(work), work);
        this.rule = rule;
        this.released = false;
        this.lost = null;
    }

    private static String message(Throwable work, OnFailure rule, CallException notReleased) {
        String key = rule == OnFailure.RETRY ? "free" : "in doubt";
        String told = notReleased == null
                ? "the key is " + key
                : "that the key is " + key + " is not confirmed: " + notReleased.getMessage();
        return "the work failed: " + text(work) + "; " + told;
    }

    /** What a throwable says, or else what it is. */
    static String text(Throwable thrown) {
        String message;
        try {
            message = thrown.getMessage();
        } catch (Throwable broken) {
            // A claim is given back whatever its work threw.
            message = null;
        }
        return message == null ? thrown.getClass().getName() : message;
    }

    @Override
    public String reason() {
        return null;
    }

    /**
     * What was asked to become of the key.
     *
     * @return never null
     */
    public OnFailure rule() {
        return rule;
    }

    /**
     * Whether that was confirmed.
     *
     * @return false if not: the claim then lapses by itself after its lock TTL. The reason is suppressed in this
     */
    public boolean isReleased() {
        return released;
    }

    /**
     * Whether the claim had been lost before the work failed, and why.
     *
     * @return null if it had not
     */
    public Lost lost() {
        return lost;
    }
}
