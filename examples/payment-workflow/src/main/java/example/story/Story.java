package example.story;

import example.story.World.Kind;
import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.sql.Connection;
import java.util.ArrayList;
import java.util.EnumMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Callable;

/**
 * Plays the same payments against a service without a guard, against one that notes first that a payment was here, and
 * against the one with onced. Fails unless all is as told.
 */
public final class Story {
    private static final List<String> BROKEN = new ArrayList<>();

    private final World world;

    private Story(World world) {
        this.world = world;
    }

    /** Tells it, and ends with 1 if anything was not so. */
    public static void main(String[] args) throws Exception {
        var worlds = new EnumMap<Kind, World>(Kind.class);
        for (Kind kind : Kind.values()) {
            System.out.println(
                    switch (kind) {
                        case NO_GUARD -> "Without a guard: each request debits";
                        case GUARD_FIRST -> "\nWith a guard: one bit says that the payment was here, and is set first";
                        case ONCED -> "\nWith onced: a claim, checkpoints, a token that the ledger checks, and the outcome";
                    });
            try {
                worlds.put(kind, new World(kind));
                new Story(worlds.get(kind)).tell();
            } finally {
                Host.endAll();
            }
        }
        end(worlds);
    }

    private void tell() throws Exception {
        lostReply();
        lostDecline();
        crashBefore();
        crashAfter();
        pause();
        runnerDies();
        atOnce();
        if (world.kind == Kind.ONCED) {
            crashLater();
            wrongRequests();
        }
    }

    private void lostReply() throws Exception {
        world.open("lost", 100);
        run(world.runner, "e-lost", "lost", LosesReply.before(world.a.url()), world.b.url());
        judge("The reply is lost after the debit", "e-lost", "lost", world.runner,
                "debited twice, ships", "debited once, ships", "debited once, ships");
    }

    private void lostDecline() throws Exception {
        world.open("short", 10);
        run(world.runner, "e-short", "short", LosesReply.before(world.a.url()), world.b.url());
        judge("The account does not cover it, and that reply is lost", "e-short", "short", world.runner,
                "not debited, cancels", "not debited, ships", "not debited, cancels");
        if (world.kind != Kind.ONCED) {
            return;
        }
        world.runner.says("e-short: attempt 2, a replay");
        world.topUp("short");
        run(world.runner, "e-short-2", "short", world.a.url());
        judge("  It is asked for again when there is money", "e-short-2", "short", world.runner,
                "", "", "not debited, cancels");
        String reply = world.runner.says("e-short-2: attempt 1");
        expect(reply.contains("a replay of e-short:"), "the same decline, and whose it was: " + reply);
    }

    private void crashBefore() throws Exception {
        world.open("before", 100);
        run(world.runner, "e-before", "before", world.diesBefore.url(), world.b.url());
        world.diesBefore.says("ended 137");
        judge("A host is killed before the debit", "e-before", "before", world.runner,
                "debited once, ships", "not debited, ships", "debited once, ships");
    }

    private void crashAfter() throws Exception {
        world.open("after", 100);
        run(world.runner, "e-after", "after", world.diesAfter.url(), world.a.url());
        world.diesAfter.says("ended 137");
        judge("A host is killed between the debit and its checkpoint", "e-after", "after", world.runner,
                "debited twice, ships", "debited once, ships", "debited once, ships");
        if (world.kind == Kind.ONCED) {
            // The next host asks the ledger for this very debit.
            world.a.says("resumes at its debit");
        }
    }

    private void crashLater() throws Exception {
        world.open("later", 100);
        run(world.runner, "e-later", "later", world.diesLater.url(), world.a.url());
        world.diesLater.says("ended 137");
        judge("A host is killed after the checkpoint of its debit", "e-later", "later", world.runner,
                "", "", "debited once, ships");
        world.a.says("resumes after its debit");
    }

    private void pause() throws Exception {
        world.open("pause", 10);
        world.runner.tell("e-paused pause pause 30 " + world.pauses.url());
        world.pauses.says("STOP before_debit");
        run(world.runner, "e-pause", "pause", world.b.url());
        world.topUp("pause");
        world.pauses.resume();
        boolean naive = world.kind != Kind.ONCED;
        world.pauses.says(naive ? "decided on pause" : "lost its claim: example.payment.Ledger$StaleClaim");
        judge("A host is paused before the debit, another one is asked; money comes in, the first goes on",
                "e-pause", "pause", world.runner,
                "debited once, cancels", "debited once, ships", "not debited, cancels");
        String first = end("e-paused", world.runner);
        if (!naive) {
            expect(first.startsWith("cancels"), "the caller of the paused host hears the decline: " + first);
        }
    }

    private void runnerDies() throws Exception {
        world.open("runner", 100);
        world.frailRunner.tell("e-runner runner runner 30 " + world.a.url());
        world.frailRunner.says("ended 137");
        run(world.runner, "e-runner", "runner", world.b.url());
        judge("The runner is killed after the payment, and its execution run again", "e-runner", "runner", world.runner,
                "debited twice, ships", "debited once, ships", "debited once, ships");
    }

    private void atOnce() throws Exception {
        world.open("both", 100);
        // The first one gets no further than the account, until it is known what becomes of the other one.
        Connection holder = world.hold("both");
        try {
            world.runner.tell("e-one both both 30 " + world.a.url());
            until("the first is at its debit", () -> world.transactionsWaiting() == 1);
            world.runner.tell("e-other both both 30 " + world.b.url());
            switch (world.kind) {
                case NO_GUARD -> until("the other is at its debit as well", () -> world.transactionsWaiting() == 2);
                // Nothing is paid yet.
                case GUARD_FIRST -> end("e-other", world.runner);
                case ONCED -> until("the other waits for the first", () -> callsWaiting() == 1);
            }
        } finally {
            holder.close();
        }
        String other = end("e-other", world.runner);
        judge("Two executions ask for the same payment at once", "e-one", "both", world.runner,
                "debited twice, ships", "debited once, ships", "debited once, ships");
        expect(other.equals("ships"), "both are told the same");
        if (world.kind == Kind.ONCED) {
            String heard = String.join("\n", world.runner.said("e-other: "));
            expect(heard.contains("a replay of e-one:"), "the other is told what the first came to: " + heard);
        }
    }

    /** How many calls wait at onced for the holder of their key. */
    private static long callsWaiting() throws IOException, InterruptedException {
        var request = HttpRequest.newBuilder(URI.create(System.getenv("ONCED_ADMIN") + "/metrics")).build();
        String metrics = HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString()).body();
        String name = "onced_limit_used{limit=\"max_waiting_calls\"} ";
        return metrics.lines()
                .filter(line -> line.startsWith(name))
                .mapToLong(line -> Long.parseLong(line.substring(name.length())))
                .findFirst()
                .orElseThrow();
    }

    /** Waits until it is so. */
    private static void until(String what, Callable<Boolean> isSo) throws Exception {
        long end = System.nanoTime() + Host.LIMIT;
        while (!isSo.call()) {
            if (System.nanoTime() - end > 0) {
                throw new IllegalStateException("waited in vain: " + what);
            }
            Thread.sleep(20);
        }
    }

    private void wrongRequests() throws Exception {
        world.open("wrong", 100);
        String good = "{\"payment\":\"w-1\",\"account\":\"wrong\",\"amount\":30}";
        refused("no account", "{\"payment\":\"w-2\",\"amount\":30}", "e-w", 400, "account is missing");
        refused("an amount of 0", good.replace("30", "0"), "e-w", 400, "amount is to be a whole number of cents");
        refused("no execution", good, "", 400, "the header Execution-Id is to name the execution");
        refused("no JSON", "{", "e-w", 400, "the body cannot be read");
        String nobody = good.replace("wrong", "nobody");
        refused("an unknown account", nobody, "e-w", 404, "account is unknown");
        world.open("nobody", 100);
        refused("again, when it is known", nobody, "e-w", 404, "account is unknown");
        refused("another amount under the same name", nobody.replace("30", "40"), "e-w", 422, "FINGERPRINT_MISMATCH");
        System.out.println("  Wrong requests, and the name of a payment used for another one: refused, and told why");
    }

    private void refused(String what, String body, String execution, int status, String says)
            throws IOException, InterruptedException {
        var request = HttpRequest.newBuilder(URI.create(world.a.url() + "/payments"))
                .header("Execution-Id", execution)
                .POST(HttpRequest.BodyPublishers.ofString(body))
                .build();
        var response = HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString());
        boolean right = response.statusCode() == status && response.body().contains(says);
        expect(right, what + ": " + response.statusCode() + " " + response.body());
    }

    /** Gives an execution of 30 to a runner; the payment and its account have the same name. */
    private void run(Host runner, String execution, String payment, String... urls) throws Exception {
        runner.tell(execution + " " + payment + " " + payment + " 30 " + String.join(",", urls));
        end(execution, runner);
    }

    /** What an execution ends with. */
    private static String end(String execution, Host runner) throws InterruptedException {
        // Its attempts end with one of these.
        while (true) {
            int heard = runner.said(execution + ": ").size();
            for (String end : List.of("ships", "cancels", "is stuck")) {
                List<String> said = runner.said(execution + ": " + end);
                if (!said.isEmpty()) {
                    return said.get(0).substring(execution.length() + 2);
                }
            }
            runner.says(execution + ": ", heard + 1);
        }
    }

    /** Compares what became of a payment with what is told of it in this world, and counts what went wrong. */
    private void judge(String scene, String execution, String payment, Host runner, String... told) throws Exception {
        String end = end(execution, runner).replaceFirst(",.*", "");
        long debits = world.debits(payment);
        String came = (debits == 0 ? "not debited" : debits == 1 ? "debited once" : "debited twice") + ", " + end;
        System.out.println("  " + scene + ": " + came);
        expect(came.equals(told[world.kind.ordinal()]), scene + ": " + came);
        long taken = world.taken(payment);
        expect(taken == 30 * debits, "%s: %d are gone from the account".formatted(scene, taken));
        world.payments.add(payment);
        world.twice += debits > 1 ? 1 : 0;
        world.unpaid += debits == 0 && end.equals("ships") ? 1 : 0;
        world.cancelled += debits > 0 && end.equals("cancels") ? 1 : 0;
    }

    private static void expect(boolean holds, String what) {
        if (!holds) {
            BROKEN.add(what);
            System.out.println("  NOT SO: " + what);
        }
    }

    private static void end(Map<Kind, World> worlds) {
        System.out.printf("%n  %-28s %10s %13s %7s%n", "", "no guard", "guard first", "onced");
        row("payments", worlds.values().stream().map(world -> world.payments.size()).toList());
        row("debited twice", worlds.values().stream().map(world -> world.twice).toList());
        row("shipped without being paid", worlds.values().stream().map(world -> world.unpaid).toList());
        row("debited and cancelled", worlds.values().stream().map(world -> world.cancelled).toList());
        World onced = worlds.get(Kind.ONCED);
        expect(onced.twice + onced.unpaid + onced.cancelled == 0, "with onced nothing goes wrong");
        if (!BROKEN.isEmpty()) {
            System.out.println("\nNot as told:\n- " + String.join("\n- ", BROKEN));
        }
        System.exit(BROKEN.isEmpty() ? 0 : 1);
    }

    private static void row(String what, List<Integer> counts) {
        System.out.printf("  %-28s %10d %13d %7d%n", what, counts.get(0), counts.get(1), counts.get(2));
    }
}
