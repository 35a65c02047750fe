package dev.onced.client;

/**
 * The claim was lost while the work ran, so what it did does not count here: somebody else may have done it. The cause is
 * what the work threw, if it did.
 *
 * @serial exclude
 */
public final class ClaimLostException extends OncedException {
    private static final long serialVersionUID = 1L;

    private final Lost lost;

    ClaimLostException(Lost lost, Throwable work, Held held) {
        super(lost + " while the work ran", work, null, held.attempt(), held.token());
        this.lost = lost;
    }

    /**
     * How it was lost.
     *
     * @return never null
     */
    public Lost lost() {
        return lost;
    }

    @Override
    public String reason() {
        return null;
    }
}
