package dev.onced.client;

import dev.onced.v1.InProgress;

/** Somebody else was still at it when the wait was over. */
public final class InProgressException extends OncedException {
    private static final long serialVersionUID = 1L;

    InProgressException(InProgress holder) {
        super(holder.getOwner() + " is still at it", null, holder.getOwner(), holder.getAttempt(), 0);
    }
}
