package example.payment;

import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.sun.net.httpserver.Headers;
import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.io.InputStream;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.util.HashMap;
import java.util.Map;
import java.util.concurrent.Executors;

/** JSON over the HTTP server of the JDK: what both services share. */
final class Web {
    static final ObjectMapper JSON = new ObjectMapper();

    private Web() {}

    /** An answer: its status, what becomes its JSON, and headers. */
    record Answer(int status, Object body, Map<String, String> headers) {
        Answer(int status, Object body) {
            this(status, body, Map.of());
        }

        /** A refusal. */
        static Answer error(int status, String code, String detail) {
            return new Answer(status, Map.of("code", code, "detail", detail));
        }

        /** A refusal that is worth asking again for: nothing is decided. */
        static Answer notProcessed(int status, String detail) {
            Answer refusal = error(status, "NOT_PROCESSED", detail);
            return new Answer(status, refusal.body, Map.of("Retry-After", "1"));
        }

        Answer with(String name, String value) {
            var all = new HashMap<>(headers);
            all.put(name, value);
            return new Answer(status, body, all);
        }
    }

    /** What answers a request. */
    interface Handler {
        Answer handle(JsonNode body, Headers headers) throws Exception;
    }

    /** Serves POST requests at a path on a free port, and says on which. */
    static void serve(String path, Handler handler) throws IOException {
        var server = HttpServer.create(new InetSocketAddress(InetAddress.getLoopbackAddress(), 0), 0);
        // Handlers wait for each other: by default there is one thread for all.
        server.setExecutor(Executors.newCachedThreadPool());
        server.createContext(path, exchange -> {
            try (exchange) {
                send(exchange, answer(exchange, handler));
            }
        });
        server.start();
        Log.say("listening on " + server.getAddress().getPort());
    }

    private static Answer answer(HttpExchange exchange, Handler handler) {
        if (!exchange.getRequestMethod().equals("POST")) {
            return Answer.error(405, "METHOD_NOT_ALLOWED", "only POST is known here").with("Allow", "POST");
        }
        try (InputStream in = exchange.getRequestBody()) {
            JsonNode body = JSON.readTree(in);
            if (body == null || !body.isObject()) {
                return Answer.error(400, "BODY_INVALID", "the body is to be an object of JSON");
            }
            return handler.handle(body, exchange.getRequestHeaders());
        } catch (Order.BadField bad) {
            return Answer.error(400, "FIELD_INVALID", bad.getMessage());
        } catch (JsonProcessingException bad) {
            return Answer.error(400, "BODY_INVALID", "the body cannot be read: " + bad.getOriginalMessage());
        } catch (Exception failed) {
            Log.say("failed: " + failed);
            return Answer.error(500, "INTERNAL", "the log says why");
        }
    }

    private static void send(HttpExchange exchange, Answer answer) throws IOException {
        byte[] body = JSON.writeValueAsBytes(answer.body);
        exchange.getResponseHeaders().set("Content-Type", "application/json");
        answer.headers.forEach(exchange.getResponseHeaders()::set);
        exchange.sendResponseHeaders(answer.status, body.length);
        exchange.getResponseBody().write(body);
    }
}
