package dev.onced.client.servlet;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertSame;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.databind.ObjectMapper;
import dev.onced.client.Admin;
import dev.onced.client.OnFailure;
import dev.onced.client.Onced;
import dev.onced.client.TestServer;
import dev.onced.client.Verdict;
import dev.onced.v1.LookupResponse;
import jakarta.servlet.Filter;
import jakarta.servlet.ServletException;
import jakarta.servlet.http.HttpServlet;
import jakarta.servlet.http.HttpServletRequest;
import jakarta.servlet.http.HttpServletResponse;
import jakarta.servlet.http.HttpUpgradeHandler;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.net.InetAddress;
import java.net.Socket;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.Arrays;
import java.util.EnumSet;
import java.util.List;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicReference;
import org.eclipse.jetty.ee10.servlet.FilterHolder;
import org.eclipse.jetty.ee10.servlet.ServletContextHandler;
import org.eclipse.jetty.ee10.servlet.ServletHolder;
import org.eclipse.jetty.server.Server;
import org.eclipse.jetty.server.ServerConnector;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;

/** In Jetty, over real sockets. */
@Timeout(60)
class IdempotencyFilterTest {
    private interface Handler {
        void handle(HttpServletRequest request, HttpServletResponse response) throws Exception;
    }

    private final TestServer onced = TestServer.start();
    private final Onced client = onced.connect();
    private final Admin admin = new Admin(onced.address());
    private final HttpClient http = HttpClient.newHttpClient();
    private final AtomicInteger handled = new AtomicInteger();
    private Server jetty;

    @AfterEach
    void end() throws Exception {
        admin.close();
        client.close(Duration.ZERO);
        onced.close();
        jetty.stop();
    }

    private void serve(IdempotencyFilter filter, Handler handler, Filter... before) throws Exception {
        jetty = new Server();
        var connector = new ServerConnector(jetty);
        connector.setHost("127.0.0.1");
        jetty.addConnector(connector);
        var context = new ServletContextHandler();
        for (Filter earlier : before) {
            context.addFilter(new FilterHolder(earlier), "/*", EnumSet.of(jakarta.servlet.DispatcherType.REQUEST));
        }
        context.addFilter(new FilterHolder(filter), "/*", EnumSet.of(jakarta.servlet.DispatcherType.REQUEST));
        context.addServlet(new ServletHolder(new HttpServlet() {
            private static final long serialVersionUID = 1L;

            @Override
            protected void service(HttpServletRequest request, HttpServletResponse response)
                    throws ServletException, IOException {
                handled.incrementAndGet();
                try {
                    handler.handle(request, response);
                } catch (IOException | ServletException | RuntimeException thrown) {
                    throw thrown;
                } catch (Exception thrown) {
                    throw new ServletException(thrown);
                }
            }
        }), "/*");
        jetty.setHandler(context);
        jetty.start();
    }

    private void serve(Handler handler) throws Exception {
        serve(IdempotencyFilter.of(client), handler);
    }

    private int port() {
        return ((ServerConnector) jetty.getConnectors()[0]).getLocalPort();
    }

    private HttpRequest.Builder request(String target, String body, String... headers) {
        var request = HttpRequest.newBuilder(URI.create("http://127.0.0.1:" + port() + target))
                .POST(HttpRequest.BodyPublishers.ofString(body));
        return headers.length == 0 ? request : request.headers(headers);
    }

    private HttpResponse<byte[]> post(String target, String body, String... headers) throws Exception {
        return http.send(request(target, body, headers).build(), HttpResponse.BodyHandlers.ofByteArray());
    }

    private static void isProblem(int status, String code, HttpResponse<byte[]> response) throws IOException {
        var problem = new ObjectMapper().readTree(response.body());
        assertEquals(code, problem.path("code").asText(), problem::toString);
        assertEquals(status, response.statusCode());
        assertEquals(status, problem.path("status").asInt());
        assertTrue(problem.path("title").isTextual() && problem.path("detail").isTextual());
        assertEquals("application/problem+json", response.headers().firstValue("Content-Type").orElseThrow());
    }

    @Test
    void aRepetitionGetsTheSameAnswerByteForByte() throws Exception {
        serve((request, response) -> {
            response.setStatus(201);
            response.setContentType("application/json; charset=utf-8");
            response.setHeader("Location", "/orders/17");
            response.addHeader("Link", "<a>");
            response.addHeader("Link", "<b>");
            response.setHeader("X-Trace", "not stored");
            response.getWriter().write("{\"é\": " + new String(request.getInputStream().readAllBytes(),
                    StandardCharsets.UTF_8) + "}");
        });
        var first = post("/orders?a=1", "1", "Idempotency-Key", "\"k 1\"");
        var second = post("/orders?a=1", "1", "Idempotency-Key", "\"k 1\"");
        assertEquals(1, handled.get());
        for (var answer : List.of(first, second)) {
            assertEquals(201, answer.statusCode());
            assertEquals("{\"é\": 1}", new String(answer.body(), StandardCharsets.UTF_8));
            assertEquals("/orders/17", answer.headers().firstValue("Location").orElseThrow());
            assertEquals(List.of("<a>", "<b>"), answer.headers().allValues("Link"));
        }
        assertEquals(first.headers().allValues("Content-Type"), second.headers().allValues("Content-Type"));
        assertTrue(first.headers().firstValue("Idempotent-Replayed").isEmpty());
        assertEquals("true", second.headers().firstValue("Idempotent-Replayed").orElseThrow());
        assertTrue(first.headers().firstValue("X-Trace").isPresent());

        var stored = admin.lookup("k 1").getCompleted().getOutcome();
        assertEquals("201", stored.getMetadataOrThrow("http.status"));
        assertEquals("<a>\n<b>", stored.getMetadataOrThrow("http.header.link"));
        assertEquals(first.headers().firstValue("Content-Type").orElseThrow(), stored.getContentType());
    }

    @Test
    void whatIsAskedWronglyIsRefused() throws Exception {
        // However the method is written.
        var filter = IdempotencyFilter.builder(client)
                .methods("post")
                .scopeHeader("X-Tenant")
                .largestRequest(10)
                .build();
        serve(filter, (request, response) -> {});
        isProblem(400, "IDEMPOTENCY_KEY_MISSING", post("/", "", "X-Tenant", "a"));
        isProblem(400, "IDEMPOTENCY_KEY_INVALID", post("/", "", "X-Tenant", "a", "Idempotency-Key", "\"open"));
        isProblem(400, "IDEMPOTENCY_KEY_INVALID",
                post("/", "", "X-Tenant", "a", "Idempotency-Key", "a", "Idempotency-Key", "b"));
        isProblem(400, "SCOPE_MISSING", post("/", "", "Idempotency-Key", "k"));
        isProblem(400, "SCOPE_MISSING", post("/", "", "X-Tenant", "a", "X-Tenant", "b", "Idempotency-Key", "k"));
        isProblem(400, "SCOPE_MISSING", post("/", "", "X-Tenant", "a\tb", "Idempotency-Key", "k"));
        isProblem(413, "REQUEST_TOO_LARGE", post("/", "01234567890", "X-Tenant", "a", "Idempotency-Key", "k"));
        assertEquals(0, handled.get());
        // Tenants do not share keys.
        assertEquals(200, post("/", "1", "X-Tenant", "a", "Idempotency-Key", "k").statusCode());
        assertEquals(200, post("/", "2", "X-Tenant", "b", "Idempotency-Key", "k").statusCode());
        isProblem(422, "FINGERPRINT_MISMATCH", post("/", "2", "X-Tenant", "a", "Idempotency-Key", "k"));
        isProblem(422, "FINGERPRINT_MISMATCH", post("/?x", "1", "X-Tenant", "a", "Idempotency-Key", "k"));
        assertEquals(2, handled.get());
    }

    @Test
    void theClaimNamesTheKeyAsItIsStored() throws Exception {
        serve(IdempotencyFilter.builder(client).scopeHeader("X-Tenant").build(), (request, response) -> response.getWriter()
                .print(IdempotencyFilter.claim(request).namespace() + " " + IdempotencyFilter.claim(request).key()));
        // The SHA-256 of "a" begins so.
        byte[] body = post("/", "", "X-Tenant", "a", "Idempotency-Key", "\"k\"").body();
        assertEquals("default ca978112ca1bbdcafac231b39a23dc4d:k", new String(body, StandardCharsets.UTF_8));
    }

    @Test
    void otherMethodsPassAndSoDoRequestsWithoutAKeyIfTheyMay() throws Exception {
        serve(IdempotencyFilter.builder(client).keyRequired(false).build(),
                (request, response) -> assertNull(IdempotencyFilter.claim(request)));
        assertEquals(200, post("/", "").statusCode());
        var get = HttpRequest.newBuilder(URI.create("http://127.0.0.1:" + port() + "/"))
                .header("Idempotency-Key", "k")
                .build();
        assertEquals(200, http.send(get, HttpResponse.BodyHandlers.ofByteArray()).statusCode());
        assertEquals(2, handled.get());
    }

    @Test
    void whatWasNotLookedAtFreesTheKeyAndFailuresGoByTheRule() throws Exception {
        serve(IdempotencyFilter.builder(client).onFailure(OnFailure.IN_DOUBT).build(), (request, response) -> {
            String status = request.getParameter("status");
            if (status.equals("throws")) {
                throw new IllegalStateException("a bug");
            }
            response.setStatus(Integer.parseInt(status));
            response.getOutputStream().print("as it was");
        });
        for (int i = 0; i < 2; i++) {
            var busy = post("/?status=429", "", "Idempotency-Key", "busy");
            assertEquals(429, busy.statusCode());
            assertEquals("as it was", new String(busy.body(), StandardCharsets.UTF_8));
        }
        assertEquals(2, handled.get());
        var failed = post("/?status=503", "", "Idempotency-Key", "failed");
        assertEquals(503, failed.statusCode());
        assertEquals("as it was", new String(failed.body(), StandardCharsets.UTF_8));
        isProblem(409, "IN_DOUBT", post("/?status=503", "", "Idempotency-Key", "failed"));
        assertEquals(500, post("/?status=throws", "", "Idempotency-Key", "throws").statusCode());
        isProblem(409, "IN_DOUBT", post("/?status=throws", "", "Idempotency-Key", "throws"));
        assertEquals(404, post("/?status=404", "", "Idempotency-Key", "none").statusCode());
        var none = post("/?status=404", "", "Idempotency-Key", "none");
        assertTrue(none.headers().firstValue("Idempotent-Replayed").isPresent());
    }

    @Test
    void theHandlersWordOutranksTheRules() throws Exception {
        serve((request, response) -> {
            IdempotencyFilter.say(request, Verdict.valueOf(request.getParameter("verdict")));
            response.setStatus(Integer.parseInt(request.getParameter("status")));
        });
        post("/?verdict=STORE&status=500", "", "Idempotency-Key", "a");
        var stored = post("/?verdict=STORE&status=500", "", "Idempotency-Key", "a");
        assertEquals(500, stored.statusCode());
        assertTrue(stored.headers().firstValue("Idempotent-Replayed").isPresent());
        assertEquals(200, post("/?verdict=RETRY&status=200", "", "Idempotency-Key", "b").statusCode());
        assertTrue(admin.lookup("b").hasAvailable());
        assertEquals(200, post("/?verdict=IN_DOUBT&status=200", "", "Idempotency-Key", "c").statusCode());
        assertTrue(admin.lookup("c").hasInDoubt());
    }

    @Test
    void aHandlerWhoseCallerHangsUpRunsToItsEnd() throws Exception {
        var started = new CountDownLatch(1);
        var go = new CountDownLatch(1);
        serve((request, response) -> {
            started.countDown();
            go.await();
            response.getWriter().write("paid");
        });
        try (var socket = new Socket(InetAddress.getLoopbackAddress(), port())) {
            socket.getOutputStream()
                    .write(("POST /pay HTTP/1.1\r\nHost: 127.0.0.1:" + port()
                                    + "\r\nIdempotency-Key: k\r\nContent-Length: 0\r\n\r\n")
                            .getBytes(StandardCharsets.US_ASCII));
            started.await();
            socket.setSoLinger(true, 0);
        }
        Thread.sleep(300);
        assertTrue(admin.lookup("k").hasInProgress());
        go.countDown();
        admin.await("k", LookupResponse::hasCompleted);
        assertEquals("paid", new String(post("/pay", "", "Idempotency-Key", "k").body(), StandardCharsets.UTF_8));
        assertEquals(1, handled.get());
    }

    @Test
    void whileARequestIsAnsweredOthersAreToldSo() throws Exception {
        var started = new CountDownLatch(1);
        var go = new CountDownLatch(1);
        serve(IdempotencyFilter.builder(client).waitFor(Duration.ZERO).build(), (request, response) -> {
            started.countDown();
            go.await();
        });
        var first = http.sendAsync(
                request("/", "", "Idempotency-Key", "k").build(), HttpResponse.BodyHandlers.ofByteArray());
        started.await();
        var busy = post("/", "", "Idempotency-Key", "k");
        isProblem(409, "REQUEST_IN_PROGRESS", busy);
        assertEquals("1", busy.headers().firstValue("Retry-After").orElseThrow());
        go.countDown();
        assertEquals(200, first.get().statusCode());
    }

    @Test
    void anAnswerThatDoesNotFitIsRefusedAndOneThatIsNotStoredPasses() throws Exception {
        var body = new byte[100_000];
        Arrays.fill(body, (byte) 'x');
        serve(IdempotencyFilter.builder(client).largestResponse(1_000).build(), (request, response) -> {
            response.setStatus(Integer.parseInt(request.getParameter("status")));
            response.getOutputStream().write(body);
        });
        isProblem(500, "RESPONSE_NOT_STORABLE", post("/?status=200", "", "Idempotency-Key", "large"));
        isProblem(409, "IN_DOUBT", post("/?status=200", "", "Idempotency-Key", "large"));
        var failed = post("/?status=500", "", "Idempotency-Key", "failed");
        assertEquals(500, failed.statusCode());
        assertArrayEquals(body, failed.body());
        assertTrue(admin.lookup("failed").hasAvailable());
    }

    @Test
    void aStreamOfEventsAndAHeaderThatIsNotUtf8AreRefused() throws Exception {
        var ended = new CountDownLatch(1);
        serve((request, response) -> {
            if (request.getRequestURI().equals("/header")) {
                response.setHeader("ETag", "\u00e9");
                return;
            }
            response.setContentType("text/event-stream");
            try {
                while (true) {
                    response.getOutputStream().print("data: tick\n\n");
                    response.flushBuffer();
                }
            } finally {
                ended.countDown();
            }
        });
        isProblem(500, "RESPONSE_NOT_STORABLE", post("/header", "", "Idempotency-Key", "header"));
        isProblem(500, "RESPONSE_NOT_STORABLE", post("/events", "", "Idempotency-Key", "events"));
        ended.await();
        assertTrue(admin.lookup("events").hasInDoubt());
    }

    @Test
    void aHandlerSeesWhatItWouldWithoutTheFilter() throws Exception {
        var seen = new AtomicReference<String>();
        serve((request, response) -> {
            seen.set(request.getParameter("q") + String.join(",", request.getParameterValues("a"))
                    + IdempotencyFilter.claim(request).attempt());
            response.sendRedirect("/elsewhere");
        });
        for (int i = 0; i < 2; i++) {
            var answer = post("/form?a=1", "a=2&q=%C3%A9+x", "Idempotency-Key", "k",
                    "Content-Type", "application/x-www-form-urlencoded");
            assertEquals(302, answer.statusCode());
            assertEquals("/elsewhere", answer.headers().firstValue("Location").orElseThrow());
        }
        assertEquals("é x1,21", seen.get());
        assertEquals(1, handled.get());
    }

    @Test
    void workThatMayGoOnElsewhereIsInDoubt() throws Exception {
        serve((request, response) -> {
            assertFalse(request.isAsyncSupported());
            switch (request.getRequestURI()) {
                case "/async" -> request.startAsync();
                case "/upgrade" -> request.upgrade(HttpUpgradeHandler.class);
                default -> {
                    assertThrows(IllegalStateException.class, () -> request.startAsync(request, response));
                    response.setStatus(201);
                }
            }
        });
        for (String how : List.of("async", "upgrade", "async-and-an-answer")) {
            isProblem(500, "RESPONSE_NOT_STORABLE", post("/" + how, "", "Idempotency-Key", how));
            assertTrue(admin.lookup(how).hasInDoubt());
        }
    }

    @Test
    void aBodyThatWasReadBeforeIsRefused() throws Exception {
        serve(IdempotencyFilter.of(client), (request, response) -> {}, (request, response, chain) -> {
            switch (((HttpServletRequest) request).getRequestURI()) {
                case "/stream" -> request.getInputStream().readAllBytes();
                case "/part" -> request.getInputStream().read();
                case "/reader" -> request.getReader();
                case "/form" -> request.getParameterMap();
                default -> { }
            }
            chain.doFilter(request, response);
        });
        String[] form = {"Idempotency-Key", "k", "Content-Type", "application/x-www-form-urlencoded"};
        for (String read : List.of("/stream", "/part", "/reader", "/form?b=1")) {
            isProblem(500, "REFUSED", post(read, "a=1", form));
        }
        isProblem(500, "REFUSED", chunked("/form?b=1", "a=1", form));
        assertEquals(0, handled.get());
    }

    /** Without a Content-Length. */
    private HttpResponse<byte[]> chunked(String target, String body, String... headers) throws Exception {
        byte[] bytes = body.getBytes(StandardCharsets.UTF_8);
        var publisher = HttpRequest.BodyPublishers.ofInputStream(() -> new ByteArrayInputStream(bytes));
        HttpRequest request = request(target, body, headers).POST(publisher).build();
        return http.send(request, HttpResponse.BodyHandlers.ofByteArray());
    }

    @Test
    void theBodyIsReadByOneStreamOrOneReader() throws Exception {
        serve((request, response) -> {
            var text = new StringBuilder();
            if (request.getRequestURI().equals("/reader")) {
                for (int c = request.getReader().read(); c >= 0; c = request.getReader().read()) {
                    text.append((char) c);
                }
                assertThrows(IllegalStateException.class, request::getInputStream);
                assertSame(request.getReader(), request.getReader());
            } else {
                for (int c = request.getInputStream().read(); c >= 0; c = request.getInputStream().read()) {
                    text.append((char) c);
                }
                assertThrows(IllegalStateException.class, request::getReader);
                assertSame(request.getInputStream(), request.getInputStream());
            }
            response.getWriter().write(text.toString());
        });
        for (String by : List.of("/reader", "/stream")) {
            assertEquals("abc", new String(post(by, "abc", "Idempotency-Key", by).body(), StandardCharsets.UTF_8));
        }
    }

    @Test
    void behindAClosedClientNothingRunsAndIsWorthAskingAgain() throws Exception {
        serve((request, response) -> {});
        client.close(Duration.ZERO);
        isProblem(503, "UNAVAILABLE", post("/", "", "Idempotency-Key", "k"));
        assertEquals(0, handled.get());
    }

    @Test
    void withoutOncedNothingRunsUnlessTheServiceSaysSo() throws Exception {
        onced.kill();
        try (Onced impatient = Onced.builder(onced.address()).timeout(Duration.ofMillis(300)).build()) {
            serve(IdempotencyFilter.of(impatient), (request, response) -> {});
            isProblem(503, "UNAVAILABLE", post("/", "", "Idempotency-Key", "k"));
            assertEquals(0, handled.get());
            jetty.stop();
            serve(
                    IdempotencyFilter.builder(impatient).failOpenAfter(Duration.ofMillis(100)).build(),
                    (request, response) -> response.getWriter().write("open"));
            assertEquals("open", new String(post("/", "", "Idempotency-Key", "k").body(), StandardCharsets.UTF_8));
            assertEquals(1, impatient.unprotectedRuns());
        }
    }
}
