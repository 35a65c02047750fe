package example.payment;

import java.sql.Connection;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.util.OptionalLong;
import java.util.UUID;
import javax.sql.DataSource;
import org.postgresql.ds.PGSimpleDataSource;

/** The accounts: what is debited here is money. */
final class Ledger {
    private final DataSource database;

    Ledger(DataSource database) {
        this.database = database;
    }

    /** The ledger in the database that the environment names. */
    static Ledger fromEnvironment() {
        var source = new PGSimpleDataSource();
        source.setUrl(System.getenv("LEDGER_URL"));
        // One that is paused in its transaction keeps a row locked that the next holder of the claim needs.
        // And a claim is renewed while its work hangs: so nothing may hang for ever. The database ends a statement that
        // waits for a lock; the timeouts of the socket, in seconds, are for one on which nothing arrives any more.
        source.setOptions("-c idle_in_transaction_session_timeout=2s -c statement_timeout=10s");
        source.setConnectTimeout(5);
        source.setSocketTimeout(12);
        return new Ledger(source);
    }

    enum Result {
        DEBITED,
        NOT_COVERED,
        UNKNOWN_ACCOUNT
    }

    /** What came of a debit, and the balance after it. */
    record Entry(Result result, long balance) {}

    /** The claim was taken over: whoever has it now decides. */
    static final class StaleClaim extends Exception {
        private static final long serialVersionUID = 1L;

        StaleClaim(long token) {
            super("the fencing token " + token + " is not the latest one");
        }
    }

    /**
     * Debits an account once for each {@code id}, unless a later claim of the payment was here before. The token is
     * checked in the transaction of the debit: before it, there would be time to be overtaken in between.
     */
    Entry debit(UUID id, Order order, long token) throws SQLException, StaleClaim {
        try (Connection db = database.getConnection()) {
            // Closing the connection without a commit rolls back.
            db.setAutoCommit(false);
            if (!passes(db, order.payment(), token)) {
                throw new StaleClaim(token);
            }
            OptionalLong balance = balanceAfter(db, id);
            Entry entry = balance.isPresent() ? new Entry(Result.DEBITED, balance.getAsLong()) : debit(db, id, order);
            // A refusal as well: once it was given, no older claim is to debit after all.
            db.commit();
            return entry;
        }
    }

    /** Debits without a claim, for the naive service. */
    Entry debit(UUID id, Order order) throws SQLException {
        try (Connection db = database.getConnection()) {
            db.setAutoCommit(false);
            Entry entry = debit(db, id, order);
            db.commit();
            return entry;
        }
    }

    /** Notes that a payment is processed, for the naive service. False if it was. */
    boolean mark(Order order) throws SQLException {
        String sql = "INSERT INTO processed (payment) VALUES (?) ON CONFLICT DO NOTHING";
        try (Connection db = database.getConnection(); var statement = prepare(db, sql, order.payment())) {
            return statement.executeUpdate() == 1;
        }
    }

    /** Whether no later token was seen. Holds the row, so the answer is good until the transaction ends. */
    private static boolean passes(Connection db, String payment, long token) throws SQLException {
        String sql = "INSERT INTO fences (payment, token) VALUES (?, ?)"
                + " ON CONFLICT (payment) DO UPDATE SET token = excluded.token WHERE fences.token <= excluded.token";
        try (var statement = prepare(db, sql, payment, token)) {
            return statement.executeUpdate() == 1;
        }
    }

    private static Entry debit(Connection db, UUID id, Order order) throws SQLException {
        OptionalLong balance = number(
                db,
                "UPDATE accounts SET balance = balance - ? WHERE id = ? AND balance >= ? RETURNING balance",
                order.amount(),
                order.account(),
                order.amount());
        if (balance.isEmpty()) {
            boolean known = number(db, "SELECT balance FROM accounts WHERE id = ?", order.account()).isPresent();
            return new Entry(known ? Result.NOT_COVERED : Result.UNKNOWN_ACCOUNT, 0);
        }
        String sql = "INSERT INTO debits (id, payment, account, amount, balance) VALUES (?, ?, ?, ?, ?)";
        try (var statement =
                prepare(db, sql, id, order.payment(), order.account(), order.amount(), balance.getAsLong())) {
            statement.executeUpdate();
        }
        return new Entry(Result.DEBITED, balance.getAsLong());
    }

    private static OptionalLong balanceAfter(Connection db, UUID id) throws SQLException {
        return number(db, "SELECT balance FROM debits WHERE id = ?", id);
    }

    private static OptionalLong number(Connection db, String sql, Object... values) throws SQLException {
        try (var statement = prepare(db, sql, values); ResultSet rows = statement.executeQuery()) {
            return rows.next() ? OptionalLong.of(rows.getLong(1)) : OptionalLong.empty();
        }
    }

    private static PreparedStatement prepare(Connection db, String sql, Object... values) throws SQLException {
        var statement = db.prepareStatement(sql);
        for (int i = 0; i < values.length; i++) {
            statement.setObject(i + 1, values[i]);
        }
        return statement;
    }
}
