package example.payment;

import com.fasterxml.jackson.databind.JsonNode;
import com.sun.net.httpserver.Headers;
import dev.onced.client.Claim;
import dev.onced.client.ClaimLostException;
import dev.onced.client.Done;
import dev.onced.client.FailedException;
import dev.onced.client.Failure;
import dev.onced.client.FinalException;
import dev.onced.client.Fingerprint;
import dev.onced.client.InDoubtException;
import dev.onced.client.InProgressException;
import dev.onced.client.NotBegunException;
import dev.onced.client.NotStoredException;
import dev.onced.client.Onced;
import io.grpc.Status;
import java.io.IOException;
import java.time.Duration;
import java.util.UUID;

/** Takes payments: each is debited once, or declined once, however often and by whomever it is asked for. */
public final class PaymentService {
    /** How soon after a crash others take over. It is renewed while a payment is at work, however long that is. */
    private static final Duration LOCK_TTL =
            Duration.ofSeconds(Long.parseLong(System.getenv().getOrDefault("LOCK_TTL", "15")));

    private final Onced onced;
    private final Ledger ledger;

    PaymentService(Onced onced, Ledger ledger) {
        this.onced = onced;
        this.ledger = ledger;
    }

    /** Serves until it is killed. */
    public static void main(String[] args) throws IOException {
        var service = new PaymentService(Onced.connect(), Ledger.fromEnvironment()); // at ONCED_SERVER
        Web.serve("/payments", service::pay);
    }

    Web.Answer pay(JsonNode body, Headers headers) {
        Order order = Order.from(body);
        String execution = headers.getFirst("Execution-Id");
        if (execution == null || execution.isBlank() || execution.length() > 100) {
            throw new Order.BadField("the header Execution-Id is to name the execution, in 1 to 100 characters");
        }
        try {
            Done<Payment> done = onced.once(order.payment())
                    .namespace("payments")
                    // The same payment with another amount or account is an error, and no replay.
                    .fingerprint(Fingerprint.ofJson(order))
                    // Whoever meets this payment later is told which execution made it.
                    .owner(execution)
                    .lockTtl(LOCK_TTL)
                    // Longer, to see a takeover; and less than the patience of the runner.
                    .waitFor(LOCK_TTL.multipliedBy(2))
                    .retention(Duration.ofDays(30))
                    // The ledger refuses a stale claim. A statement that is cut off says nothing.
                    .interruptWhenLost(false)
                    .run(Payment.class, claim -> perform(order, claim));
            Web.Answer answer = new Web.Answer(200, done.value()).with("Decided-By", done.owner());
            return done.ranHere() ? answer : answer.with("Idempotent-Replayed", "true");
        } catch (FinalException wrong) {
            return Web.Answer.error(404, wrong.code().name(), wrong.getMessage());
        } catch (InDoubtException doubt) {
            return Web.Answer.error(409, "IN_DOUBT", "an operator must look: " + doubt.getMessage());
        } catch (InProgressException busy) {
            return Web.Answer.notProcessed(409, "the execution " + busy.owner() + " is at it");
        } catch (ClaimLostException lost) {
            Log.say("lost its claim: " + lost.getCause());
            return Web.Answer.notProcessed(409, "another attempt took over");
        } catch (NotStoredException unknown) {
            // The work is done, and what it came to is not stored for certain. Who asks again finds the debit by its
            // checkpoint; a decline that is told now could still become a debit.
            return Web.Answer.notProcessed(503, "it is not known to be stored");
        } catch (FailedException failed) {
            Log.say("failed: " + failed.getCause());
            return Web.Answer.notProcessed(503, "it failed, and may be tried again");
        } catch (NotBegunException refused) {
            return notBegun(refused);
        }
    }

    private static Web.Answer notBegun(NotBegunException refused) {
        if ("FINGERPRINT_MISMATCH".equals(refused.reason())) {
            return Web.Answer.error(422, refused.reason(), "payment was used with another account or amount");
        }
        if (refused.isUnavailable()) {
            return Web.Answer.notProcessed(503, "nothing has run: " + refused.getMessage());
        }
        throw refused;
    }

    /**
     * The work of a payment. Between a debit and the note of it there is always room for a crash, so its number is
     * chosen, and noted, before: whoever takes over debits under the same one, and the ledger knows whether it has.
     *
     * <p>Whatever fails here may be tried again for that reason: nothing is in doubt that the ledger can be asked.
     */
    private Payment perform(Order order, Claim claim) throws Exception {
        Progress progress = Progress.of(claim.checkpoint());
        if (progress == null) {
            progress = Progress.debiting(UUID.randomUUID());
            claim.saveCheckpoint(progress.bytes());
        } else {
            Log.say("resumes " + progress);
        }
        if (!progress.isDebited()) {
            Faults.reach("before_debit");
            Ledger.Entry entry = ledger.debit(progress.debit(), order, claim.token());
            Faults.reach("after_debit");
            switch (entry.result()) {
                case UNKNOWN_ACCOUNT -> throw Failure.permanent(Status.Code.NOT_FOUND, "account is unknown");
                case NOT_COVERED -> {
                    return Payment.declined("the account does not cover it");
                }
                case DEBITED -> progress = progress.debited(entry.balance());
            }
            // From here on the ledger need not be asked again.
            claim.saveCheckpoint(progress.bytes());
        }
        Faults.reach("after_checkpoint");
        return Payment.successful(progress.debit().toString(), progress.balance());
    }
}
