package example.payment;

import com.fasterxml.jackson.databind.JsonNode;
import java.io.IOException;
import java.sql.SQLException;
import java.util.UUID;

/** Takes payments as it is often written: without a guard, or with one bit that says that it was here before. */
public final class NaivePaymentService {
    private final Ledger ledger = Ledger.fromEnvironment();
    private final boolean guarded;

    private NaivePaymentService(boolean guarded) {
        this.guarded = guarded;
    }

    /** Serves until it is killed, with a guard if the argument says so. */
    public static void main(String[] args) throws IOException {
        var service = new NaivePaymentService(args[0].equals("guard"));
        Web.serve("/payments", (body, headers) -> service.pay(body));
    }

    private Web.Answer pay(JsonNode body) throws SQLException {
        Order order = Order.from(body);
        if (guarded && !ledger.mark(order)) {
            // It was processed: what else could this say?
            return new Web.Answer(200, Payment.successful(null, 0));
        }
        Faults.reach("before_debit");
        UUID debit = UUID.randomUUID();
        Ledger.Entry entry = ledger.debit(debit, order);
        Log.say("decided on " + order.payment());
        Faults.reach("after_debit");
        return switch (entry.result()) {
            case DEBITED -> new Web.Answer(200, Payment.successful(debit.toString(), entry.balance()));
            case NOT_COVERED -> new Web.Answer(200, Payment.declined("the account does not cover it"));
            case UNKNOWN_ACCOUNT -> Web.Answer.error(404, "NOT_FOUND", "account is unknown");
        };
    }
}
