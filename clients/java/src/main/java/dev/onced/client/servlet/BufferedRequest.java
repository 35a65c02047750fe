package dev.onced.client.servlet;

import jakarta.servlet.AsyncContext;
import jakarta.servlet.ReadListener;
import jakarta.servlet.ServletException;
import jakarta.servlet.ServletInputStream;
import jakarta.servlet.ServletRequest;
import jakarta.servlet.ServletResponse;
import jakarta.servlet.http.HttpServletRequest;
import jakarta.servlet.http.HttpServletRequestWrapper;
import jakarta.servlet.http.HttpUpgradeHandler;
import jakarta.servlet.http.Part;
import java.io.BufferedReader;
import java.io.ByteArrayInputStream;
import java.io.InputStreamReader;
import java.net.URLDecoder;
import java.nio.charset.Charset;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.Collection;
import java.util.Collections;
import java.util.Enumeration;
import java.util.LinkedHashMap;
import java.util.Locale;
import java.util.Map;
import java.util.stream.Stream;

/** A request whose body was read, and is there to be read again. */
final class BufferedRequest extends HttpServletRequestWrapper {
    private static final String NOT_HERE =
            " is not to be had behind the IdempotencyFilter: an answer that it stores is one that is complete";

    private final byte[] body;
    private Map<String, String[]> parameters;
    private ServletInputStream stream;
    private BufferedReader reader;
    /** What the handler asked for, if it was to be answered elsewhere than in its thread. */
    private volatile String elsewhere;

    BufferedRequest(HttpServletRequest request, byte[] body) {
        super(request);
        this.body = body;
    }

    /** Why the handler may go on after it has returned; null if it does not. */
    String elsewhere() {
        return elsewhere;
    }

    @Override
    public ServletInputStream getInputStream() {
        if (reader != null) {
            throw new IllegalStateException("getReader was called before");
        }
        if (stream == null) {
            stream = stream();
        }
        return stream;
    }

    private ServletInputStream stream() {
        var bytes = new ByteArrayInputStream(body);
        return new ServletInputStream() {
            @Override
            public int read() {
                return bytes.read();
            }

            @Override
            public int read(byte[] into, int offset, int length) {
                return bytes.read(into, offset, length);
            }

            @Override
            public boolean isFinished() {
                return bytes.available() == 0;
            }

            @Override
            public boolean isReady() {
                return true;
            }

            @Override
            public void setReadListener(ReadListener listener) {
                throw new IllegalStateException("reading without a thread" + NOT_HERE);
            }
        };
    }

    @Override
    public BufferedReader getReader() {
        if (stream != null) {
            throw new IllegalStateException("getInputStream was called before");
        }
        if (reader == null) {
            reader = new BufferedReader(new InputStreamReader(new ByteArrayInputStream(body), charset()));
        }
        return reader;
    }

    static boolean isForm(HttpServletRequest request) {
        String type = request.getContentType();
        return type != null && type.toLowerCase(Locale.ROOT).startsWith("application/x-www-form-urlencoded");
    }

    private Charset charset() {
        return getCharacterEncoding() == null ? StandardCharsets.UTF_8 : Charset.forName(getCharacterEncoding());
    }

    /** The container finds those of the query; the body it does not see any more. */
    @Override
    public Map<String, String[]> getParameterMap() {
        if (parameters == null) {
            Map<String, String[]> all = new LinkedHashMap<>(super.getParameterMap());
            if (isForm(this)) {
                for (String field : new String(body, charset()).split("&")) {
                    if (!field.isEmpty()) {
                        String[] parts = field.split("=", 2);
                        String value = parts.length == 1 ? "" : URLDecoder.decode(parts[1], charset());
                        all.merge(URLDecoder.decode(parts[0], charset()), new String[] {value}, BufferedRequest::joined);
                    }
                }
            }
            parameters = Collections.unmodifiableMap(all);
        }
        return parameters;
    }

    private static String[] joined(String[] some, String[] more) {
        return Stream.concat(Arrays.stream(some), Arrays.stream(more)).toArray(String[]::new);
    }

    @Override
    public String getParameter(String name) {
        String[] values = getParameterMap().get(name);
        return values == null ? null : values[0];
    }

    @Override
    public String[] getParameterValues(String name) {
        return getParameterMap().get(name);
    }

    @Override
    public Enumeration<String> getParameterNames() {
        return Collections.enumeration(getParameterMap().keySet());
    }

    @Override
    public Collection<Part> getParts() throws ServletException {
        throw new ServletException("a request in parts" + NOT_HERE);
    }

    @Override
    public Part getPart(String name) throws ServletException {
        throw new ServletException("a request in parts" + NOT_HERE);
    }

    @Override
    public boolean isAsyncSupported() {
        return false;
    }

    @Override
    public AsyncContext startAsync() {
        throw goesElsewhere("asynchronous handling");
    }

    @Override
    public AsyncContext startAsync(ServletRequest request, ServletResponse response) {
        return startAsync();
    }

    @Override
    public <T extends HttpUpgradeHandler> T upgrade(Class<T> handler) {
        throw goesElsewhere("another protocol");
    }

    private IllegalStateException goesElsewhere(String what) {
        elsewhere = what + NOT_HERE;
        return new IllegalStateException(elsewhere);
    }
}
