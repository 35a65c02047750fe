package dev.onced.client;

import dev.onced.v1.Disposition;

/** What becomes of the key when the work fails without saying. */
public enum OnFailure {
    /** The key is free again: the work had no effect, or is safe to repeat. */
    RETRY(Disposition.DISPOSITION_RETRY),
    /** The key is in doubt: nobody runs it until an operator has resolved it. */
    IN_DOUBT(Disposition.DISPOSITION_IN_DOUBT);

    final Disposition wire;

    OnFailure(Disposition wire) {
        this.wire = wire;
    }
}
