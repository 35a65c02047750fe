package example.payment;

/**
 * What became of a payment. There is a third state: not processed, which is that there is none of these.
 *
 * @param state whether money was taken
 * @param debit its number in the ledger; null if declined
 * @param balance what is left in the account; 0 if declined
 * @param reason why it was declined; null if it was not
 */
record Payment(State state, String debit, long balance, String reason) {
    enum State {
        SUCCESSFUL,
        DECLINED
    }

    static Payment successful(String debit, long balance) {
        return new Payment(State.SUCCESSFUL, debit, balance, null);
    }

    static Payment declined(String reason) {
        return new Payment(State.DECLINED, null, 0, reason);
    }
}
