package example.story;

import example.payment.NaivePaymentService;
import example.payment.PaymentService;
import example.payment.Runner;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.SQLException;
import java.util.HashMap;
import java.util.HashSet;
import java.util.Locale;
import java.util.Map;
import java.util.Set;

/** A way to write the service, with hosts and a ledger of its own, and what went wrong there. */
final class World {
    enum Kind {
        NO_GUARD,
        GUARD_FIRST,
        ONCED
    }

    final Kind kind;
    final Host a;
    final Host b;
    /** Dies before its first debit. */
    final Host diesBefore;
    /** Dies after its first debit. */
    final Host diesAfter;
    /** Dies once it has noted its first debit; none where nothing is noted. */
    final Host diesLater;
    /** Is paused before its first debit. */
    final Host pauses;

    final Host runner;
    /** Dies once it has heard of its first payment. */
    final Host frailRunner;

    final Set<String> payments = new HashSet<>();
    int twice;
    int unpaid;
    int cancelled;

    private final String url;
    private final Connection ledger;
    private final Map<String, String> environment;
    /** What was paid into each account. */
    private final Map<String, Long> paidIn = new HashMap<>();

    World(Kind kind) throws IOException, SQLException {
        this.kind = kind;
        String server = "jdbc:" + System.getenv("DATABASE_URL").replaceFirst("//(\\w+)@", "//");
        String user = System.getenv("DATABASE_URL").replaceFirst("^\\w+://(\\w+)@.*", "$1");
        String name = kind.name().toLowerCase(Locale.ROOT);
        try (var first = DriverManager.getConnection(server, user, ""); var statement = first.createStatement()) {
            statement.execute("CREATE DATABASE " + name);
        }
        url = server.replaceFirst("/[^/]*$", "/" + name) + "?user=" + user;
        ledger = DriverManager.getConnection(url);
        execute(Files.readString(Path.of("schema.sql")));
        environment = Map.of("LEDGER_URL", url);
        a = host("");
        b = host("");
        diesBefore = host("before_debit:KILL");
        diesAfter = host("after_debit:KILL");
        diesLater = kind == Kind.ONCED ? host("after_checkpoint:KILL") : null;
        pauses = host("before_debit:STOP");
        runner = Host.start(Map.of(), Runner.class);
        frailRunner = Host.start(Map.of("FAULT", "after_payment:KILL"), Runner.class);
    }

    private Host host(String fault) throws IOException {
        var all = new HashMap<>(environment);
        all.put("FAULT", fault);
        return kind == Kind.ONCED
                ? Host.start(all, PaymentService.class)
                : Host.start(all, NaivePaymentService.class, kind == Kind.GUARD_FIRST ? "guard" : "none");
    }

    void open(String account, long balance) throws SQLException {
        execute("INSERT INTO accounts (id, balance) VALUES ('" + account + "', " + balance + ")");
        paidIn.put(account, balance);
    }

    void topUp(String account) throws SQLException {
        execute("UPDATE accounts SET balance = balance + 100 WHERE id = '" + account + "'");
        paidIn.merge(account, 100L, Long::sum);
    }

    /** What was taken from an account, by its balance. */
    long taken(String account) throws SQLException {
        return paidIn.get(account) - number("SELECT balance FROM accounts WHERE id = '" + account + "'");
    }

    /** Keeps an account from being debited until it is closed. */
    Connection hold(String account) throws SQLException {
        Connection holder = DriverManager.getConnection(url);
        holder.setAutoCommit(false);
        try (var statement = holder.createStatement()) {
            statement.execute("SELECT FROM accounts WHERE id = '" + account + "' FOR UPDATE");
        }
        return holder;
    }

    /** How many transactions wait for another one. */
    long transactionsWaiting() throws SQLException {
        return number("SELECT count(*) FROM pg_stat_activity"
                + " WHERE datname = current_database() AND wait_event_type = 'Lock'");
    }

    /** How often a payment was debited. */
    long debits(String payment) throws SQLException {
        return number("SELECT count(*) FROM debits WHERE payment = '" + payment + "'");
    }

    private long number(String sql) throws SQLException {
        try (var statement = ledger.createStatement(); var rows = statement.executeQuery(sql)) {
            rows.next();
            return rows.getLong(1);
        }
    }

    private void execute(String sql) throws SQLException {
        try (var statement = ledger.createStatement()) {
            statement.execute(sql);
        }
    }
}
