package dev.onced.client.servlet;

import com.fasterxml.jackson.databind.ObjectMapper;
import jakarta.servlet.http.HttpServletResponse;
import java.io.IOException;
import java.util.LinkedHashMap;
import java.util.Map;

/** What is refused, and how. */
enum Problem {
    IDEMPOTENCY_KEY_MISSING(400, "The request has no Idempotency-Key", false),
    IDEMPOTENCY_KEY_INVALID(400, "The Idempotency-Key is invalid", false),
    SCOPE_MISSING(400, "The request does not say whose Idempotency-Key it is", false),
    REQUEST_IN_PROGRESS(409, "The same request is still being answered", true),
    CLAIM_LOST(409, "Another attempt took over; its answer is what counts", true),
    IN_DOUBT(409, "What an earlier attempt did is unknown; an operator must look", false),
    REQUEST_TOO_LARGE(413, "The request is too large", false),
    FINGERPRINT_MISMATCH(422, "The Idempotency-Key was used for another request", false),
    RESPONSE_NOT_STORABLE(500, "The request was carried out, but its answer cannot be stored", false),
    REFUSED(500, "The request was not carried out", false),
    UNAVAILABLE(503, "Whether the request was carried out before cannot be asked; it was not carried out now", true);

    private static final ObjectMapper JSON = new ObjectMapper();

    private final int status;
    private final String title;
    private final boolean later;

    Problem(int status, String title, boolean later) {
        this.status = status;
        this.title = title;
        this.later = later;
    }

    /** Answers with it, if no answer is on its way yet. */
    void send(HttpServletResponse response, String detail) throws IOException {
        if (response.isCommitted()) {
            return;
        }
        Map<String, Object> problem = new LinkedHashMap<>();
        problem.put("title", title);
        problem.put("status", status);
        problem.put("detail", detail);
        problem.put("code", name());
        byte[] body = JSON.writeValueAsBytes(problem);
        response.resetBuffer();
        response.setStatus(status);
        response.setContentType("application/problem+json");
        if (later) {
            response.setHeader("Retry-After", "1");
        }
        response.setContentLength(body.length);
        response.getOutputStream().write(body);
    }
}
