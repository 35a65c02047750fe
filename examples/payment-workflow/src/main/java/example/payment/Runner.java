package example.payment;

import com.fasterxml.jackson.databind.JsonNode;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.time.Duration;

/**
 * Runs workflows: pays for an order, then ships it, or cancels it. Reads executions from its standard input, one a line:
 * EXECUTION PAYMENT ACCOUNT AMOUNT URL[,URL]. One that was interrupted is given to it again, under the same name.
 */
public final class Runner {
    /** For one attempt: longer than the service waits for a host that it may have to take over from. */
    private static final Duration PATIENCE =
            Duration.ofSeconds(Long.parseLong(System.getenv().getOrDefault("PATIENCE", "45")));

    private static final int ATTEMPTS = 8;

    private final HttpClient http = HttpClient.newBuilder()
            .version(HttpClient.Version.HTTP_1_1)
            .connectTimeout(PATIENCE)
            .build();

    private Runner() {}

    /** Runs until its input ends. */
    public static void main(String[] args) throws IOException {
        var runner = new Runner();
        Log.say("ready");
        var lines = new BufferedReader(new InputStreamReader(System.in));
        for (String line; (line = lines.readLine()) != null; ) {
            String[] words = line.split(" ");
            new Thread(() -> runner.execute(words)).start();
        }
    }

    private void execute(String[] words) {
        String execution = words[0];
        try {
            Order order = new Order(words[1], words[2], Long.parseLong(words[3]));
            JsonNode payment = pay(execution, order, words[4].split(","));
            Faults.reach("after_payment");
            boolean paid = payment.path("state").asText().equals("SUCCESSFUL");
            Log.say(execution + ": " + (paid ? "ships" : "cancels, " + payment.path("reason").asText()));
        } catch (Exception stuck) {
            // Neither shipped nor cancelled: what became of the payment shows when it is run again.
            Log.say(execution + ": is stuck, " + stuck.getMessage());
        }
    }

    /** Asks for the payment until it is known what became of it. Each attempt goes to the next host. */
    private JsonNode pay(String execution, Order order, String[] urls) throws Exception {
        String body = Web.JSON.writeValueAsString(order);
        String last = "";
        for (int attempt = 1; attempt <= ATTEMPTS; attempt++) {
            var request = HttpRequest.newBuilder(URI.create(urls[(attempt - 1) % urls.length] + "/payments"))
                    .timeout(PATIENCE)
                    .header("Content-Type", "application/json")
                    .header("Execution-Id", execution)
                    .POST(HttpRequest.BodyPublishers.ofString(body))
                    .build();
            long pause = 100;
            try {
                HttpResponse<String> response = http.send(request, HttpResponse.BodyHandlers.ofString());
                last = response.statusCode() + " " + response.body();
                boolean replay = response.headers().firstValue("Idempotent-Replayed").isPresent();
                String by = response.headers().firstValue("Decided-By").orElse("nobody");
                Log.say(execution + ": attempt " + attempt + (replay ? ", a replay of " + by : "") + ": " + last);
                var again = response.headers().firstValue("Retry-After");
                if (response.statusCode() == 200) {
                    return Web.JSON.readTree(response.body());
                }
                if (again.isEmpty() && response.statusCode() < 500) {
                    throw new IllegalStateException(last);
                }
                pause = again.map(Long::parseLong).orElse(1L) * 1_000;
            } catch (IOException lost) {
                // It may have been debited, and it may not: the name of the payment is what makes it safe to ask again.
                Log.say(execution + ": attempt " + attempt + ": no answer");
                last = "no answer";
            }
            Thread.sleep(pause);
        }
        throw new IllegalStateException("after " + ATTEMPTS + " attempts: " + last);
    }
}
