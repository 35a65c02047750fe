package dev.onced.client;

/** Why a claim no longer protects its work. */
public enum Lost {
    /** A server said so: somebody took over, or the record was settled or deleted. */
    TAKEN_OVER("the claim was taken over, settled or deleted"),
    /** The lock ended on this machine's clock, for want of a renewal: somebody may take over at any moment. */
    LOCK_ENDED("the lock could not be renewed in time, so that others may take over"),
    /** This run gave it back, because its work failed. */
    GIVEN_BACK("the claim was given back");

    private final String text;

    Lost(String text) {
        this.text = text;
    }

    /** A sentence without its end, for people. */
    @Override
    public String toString() {
        return text;
    }
}
