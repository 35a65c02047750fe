package example.payment;

import java.io.IOException;
import java.util.UUID;

/**
 * How far a payment has got: the checkpoint of its claim.
 *
 * @param debit the number of its debit
 * @param balance what the debit left in the account; null if it may not have happened yet
 */
record Progress(UUID debit, Long balance) {
    /** None if there is no checkpoint. */
    static Progress of(byte[] checkpoint) throws IOException {
        return checkpoint == null ? null : Web.JSON.readValue(checkpoint, Progress.class);
    }

    static Progress debiting(UUID debit) {
        return new Progress(debit, null);
    }

    Progress debited(long left) {
        return new Progress(debit, left);
    }

    boolean isDebited() {
        return balance != null;
    }

    byte[] bytes() throws IOException {
        return Web.JSON.writeValueAsBytes(this);
    }

    @Override
    public String toString() {
        return isDebited() ? "after its debit" : "at its debit";
    }
}
