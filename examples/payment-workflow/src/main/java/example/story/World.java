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
import java.util.Locale;
import java.util.Map;

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

    int asked;
    int twice;
    int unpaid;
    int cancelled;

    private final Connection ledger;
    private final Map<String, String> environment;

    World(Kind kind) throws IOException, SQLException {
        this.kind = kind;
        String server = "jdbc:" + System.getenv("DATABASE_URL").replaceFirst("//(\\w+)@", "//");
        String user = System.getenv("DATABASE_URL").replaceFirst("^\\w+://(\\w+)@.*", "$1");
        String name = kind.name().toLowerCase(Locale.ROOT);
        try (var first = DriverManager.getConnection(server, user, ""); var statement = first.createStatement()) {
            statement.execute("CREATE DATABASE " + name);
        }
        String url = server.replaceFirst("/[^/]*$", "/" + name) + "?user=" + user;
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
    }

    void topUp(String account) throws SQLException {
        execute("UPDATE accounts SET balance = balance + 100 WHERE id = '" + account + "'");
    }

    /** How often a payment was debited. */
    int debits(String payment) throws SQLException {
        try (var statement = ledger.prepareStatement("SELECT count(*) FROM debits WHERE payment = ?")) {
            statement.setString(1, payment);
            try (var rows = statement.executeQuery()) {
                rows.next();
                return rows.getInt(1);
            }
        }
    }

    private void execute(String sql) throws SQLException {
        try (var statement = ledger.createStatement()) {
            statement.execute(sql);
        }
    }
}
