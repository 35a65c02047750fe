package dev.onced.client.servlet;

import com.google.protobuf.ByteString;
import dev.onced.client.Codec;
import dev.onced.v1.Outcome;
import jakarta.servlet.http.HttpServletResponse;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.CharBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;

/**
 * The answer to a request, as it is stored.
 *
 * @param status the number
 * @param contentType empty if it has none
 * @param headers by name in small letters; several of one name are joined by line feeds
 * @param body the bytes
 */
record Answer(int status, String contentType, Map<String, String> headers, byte[] body) {
    /** The headers that are stored unless more are asked for. */
    static final Set<String> HEADERS = Set.of(
            "cache-control", "content-disposition", "content-encoding", "content-language", "etag", "last-modified",
            "link", "location", "retry-after", "vary");

    private static final String STATUS = "http.status";
    private static final String HEADER = "http.header.";

    static final Codec<Answer> CODEC = new Codec<>() {
        @Override
        public Outcome encode(Answer answer) {
            Outcome.Builder outcome = Outcome.newBuilder()
                    .setResponse(ByteString.copyFrom(answer.body))
                    .setContentType(answer.contentType)
                    .putMetadata(STATUS, Integer.toString(answer.status));
            answer.headers.forEach((name, value) -> outcome.putMetadata(HEADER + name, value));
            return outcome.build();
        }

        @Override
        public Answer decode(Outcome outcome) {
            String status = outcome.getMetadataOrDefault(STATUS, "");
            if (!status.matches("[2-5][0-9][0-9]")) {
                throw new IllegalArgumentException("it is no answer to an HTTP request: it has no http.status");
            }
            Map<String, String> headers = new TreeMap<>();
            outcome.getMetadataMap().forEach((name, value) -> {
                if (name.startsWith(HEADER)) {
                    headers.put(name.substring(HEADER.length()), value);
                }
            });
            byte[] body = outcome.getResponse().toByteArray();
            return new Answer(Integer.parseInt(status), outcome.getContentType(), headers, body);
        }
    };

    /** Takes from a response what is stored of it. */
    static Answer of(HttpServletResponse response, int status, Set<String> names, byte[] body)
            throws CharacterCodingException {
        Map<String, String> headers = new TreeMap<>();
        for (String name : names) {
            List<String> values = new ArrayList<>();
            for (String value : response.getHeaders(name)) {
                values.add(utf8(value));
            }
            if (!values.isEmpty()) {
                headers.put(name, String.join("\n", values));
            }
        }
        String contentType = response.getContentType();
        return new Answer(status, contentType == null ? "" : utf8(contentType), headers, body);
    }

    void send(HttpServletResponse response) throws IOException {
        response.setStatus(status);
        if (!contentType.isEmpty()) {
            response.setContentType(latin1(contentType));
        }
        headers.forEach((name, joined) -> {
            String[] values = joined.split("\n", -1);
            response.setHeader(name, latin1(values[0]));
            for (int i = 1; i < values.length; i++) {
                response.addHeader(name, latin1(values[i]));
            }
        });
        sendBody(response, body);
    }

    static void sendBody(HttpServletResponse response, byte[] body) throws IOException {
        int status = response.getStatus();
        if (status != HttpServletResponse.SC_NO_CONTENT && status != HttpServletResponse.SC_NOT_MODIFIED) {
            response.setContentLength(body.length);
        }
        response.getOutputStream().write(body);
    }

    /** Servlets show the bytes of headers as ISO 8859-1, whatever they are. */
    private static String utf8(String header) throws CharacterCodingException {
        ByteBuffer bytes = StandardCharsets.ISO_8859_1.newEncoder().encode(CharBuffer.wrap(header));
        return StandardCharsets.UTF_8.newDecoder().decode(bytes).toString();
    }

    private static String latin1(String header) {
        return new String(header.getBytes(StandardCharsets.UTF_8), StandardCharsets.ISO_8859_1);
    }
}
