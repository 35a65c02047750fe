package dev.onced.client;

/**
 * Whatever goes wrong in this library. None of these is checked.
 *
 * @serial exclude
 */
public abstract sealed class OncedException extends RuntimeException
        permits CallException,
                ClaimLostException,
                FailedException,
                FinalException,
                InDoubtException,
                InProgressException,
                NotBegunException,
                NotStoredException,
                SetUpException,
                UnfitException,
                UnreadableException,
                UnstorableException {
    private static final long serialVersionUID = 1L;

    private final String owner;
    private final long attempt;
    private final long token;

    OncedException(String message, Throwable cause) {
        this(message, cause, null, 0, 0);
    }

    OncedException(String message, Throwable cause, String owner, long attempt, long token) {
        super(message, cause);
        this.owner = owner;
        this.attempt = attempt;
        this.token = token;
    }

    /**
     * The reason that the server gave, as docs/errors spells it, such as {@code FINGERPRINT_MISMATCH}; of a key in doubt,
     * what its last holder said.
     *
     * @return null if none was given
     */
    public String reason() {
        return getCause() instanceof OncedException cause ? cause.reason() : null;
    }

    /**
     * Who holds the key, or held it last.
     *
     * @return null if that was not said
     */
    public String owner() {
        return owner;
    }

    /**
     * The attempt that this is about.
     *
     * @return 0 if that was not said
     */
    public long attempt() {
        return attempt;
    }

    /**
     * The fencing token of the claim that this is about, an unsigned number.
     *
     * @return 0 if that was not said
     */
    public long token() {
        return token;
    }
}
