package dev.onced.client.servlet;

import static java.util.stream.Collectors.toUnmodifiableSet;

import dev.onced.client.Claim;
import dev.onced.client.IdempotencyKey;
import dev.onced.client.Once;
import dev.onced.client.Onced;
import dev.onced.client.OnFailure;
import dev.onced.client.OnLapse;
import dev.onced.client.Verdict;
import jakarta.servlet.Filter;
import jakarta.servlet.FilterChain;
import jakarta.servlet.ServletException;
import jakarta.servlet.ServletRequest;
import jakarta.servlet.ServletResponse;
import jakarta.servlet.http.HttpServletRequest;
import jakarta.servlet.http.HttpServletResponse;
import java.io.IOException;
import java.io.InputStream;
import java.time.Duration;
import java.util.Arrays;
import java.util.Collections;
import java.util.HashSet;
import java.util.List;
import java.util.Locale;
import java.util.Objects;
import java.util.Optional;
import java.util.Set;
import java.util.function.Function;

/**
 * Answers a request that has an {@code Idempotency-Key} once, however often it comes, and gives all repetitions the same
 * answer: status, stored headers and body, byte for byte, with {@code Idempotent-Replayed: true}.
 *
 * <p>The handler runs to its end when its caller hangs up, and its answer is kept in memory until it is stored. A handler
 * behind this filter answers in the thread that called it: {@code startAsync}, multipart requests and upgrades are
 * refused, and the first and the last leave the key in doubt, since the work may go on elsewhere. Exceptions of handlers
 * reach the container as they are. No filter before this one may have read the body, or the parameters of a form.
 */
public final class IdempotencyFilter implements Filter {
    /** How long a repetition waits for the answer unless told otherwise. */
    public static final Duration DEFAULT_WAIT = Duration.ofSeconds(10);

    /** The largest request, in bytes, unless told otherwise. */
    public static final int DEFAULT_REQUEST_BYTES = 1 << 20;

    private static final String HEADER = "Idempotency-Key";
    static final String CLAIM = IdempotencyFilter.class.getName() + ".claim";
    static final String VERDICT = IdempotencyFilter.class.getName() + ".verdict";
    private static final System.Logger LOG = System.getLogger(IdempotencyFilter.class.getName());

    private final Builder options;

    private IdempotencyFilter(Builder options) {
        this.options = options;
    }

    /**
     * A filter with the standard settings.
     *
     * @param client not closed by this
     * @return the filter
     */
    public static IdempotencyFilter of(Onced client) {
        return builder(client).build();
    }

    /**
     * Settings for a filter.
     *
     * @param client not closed by this
     * @return the settings
     */
    public static Builder builder(Onced client) {
        return new Builder(client);
    }

    /**
     * The claim under which a request is handled.
     *
     * @param request as the handler got it
     * @return null if it has no key
     */
    public static Claim claim(ServletRequest request) {
        return (Claim) request.getAttribute(CLAIM);
    }

    /**
     * Says what becomes of the answer to a request, whatever its status is.
     *
     * @param request as the handler got it
     * @param verdict said before the answer is written, or it may be too late for a large one
     */
    public static void say(ServletRequest request, Verdict verdict) {
        request.setAttribute(VERDICT, verdict);
    }

    @Override
    public void doFilter(ServletRequest any, ServletResponse to, FilterChain chain)
            throws IOException, ServletException {
        if (!(any instanceof HttpServletRequest request)
                || !(to instanceof HttpServletResponse response)
                || !options.methods.contains(request.getMethod())
                || claim(request) != null) {
            chain.doFilter(any, to);
            return;
        }
        List<String> headers = Collections.list(request.getHeaders(HEADER));
        if (headers.isEmpty() && !options.required) {
            chain.doFilter(request, response);
        } else if (headers.isEmpty()) {
            Problem.IDEMPOTENCY_KEY_MISSING.send(response, "send the header " + HEADER);
        } else if (headers.size() > 1) {
            Problem.IDEMPOTENCY_KEY_INVALID.send(response, "send the header " + HEADER + " once");
        } else {
            withKey(request, response, chain, headers.get(0));
        }
    }

    private void withKey(HttpServletRequest request, HttpServletResponse response, FilterChain chain, String header)
            throws IOException, ServletException {
        String scope = options.scope == null ? null : options.scope.apply(request);
        if (options.scope != null && (scope == null || scope.isEmpty())) {
            Problem.SCOPE_MISSING.send(response, "say whose key it is");
            return;
        }
        Optional<String> key = IdempotencyKey.parse(header, scope != null);
        if (key.isEmpty()) {
            Problem.IDEMPOTENCY_KEY_INVALID.send(
                    response, "it is to be printable ASCII, 1 to " + (scope == null ? 512 : 479) + " bytes");
            return;
        }
        byte[] body = body(request);
        if (body != null && body.length > options.requestBytes) {
            Problem.REQUEST_TOO_LARGE.send(response, "at most " + options.requestBytes + " bytes are taken");
            return;
        }
        if (body == null
                || body.length < request.getContentLengthLong()
                || body.length == 0 && hasFormFields(request)) {
            LOG.log(
                    System.Logger.Level.ERROR,
                    "the body of a request was read before the IdempotencyFilter, which cannot tell requests from each "
                            + "other without it: put this filter first");
            Problem.REFUSED.send(response, "the log of the service says why");
            return;
        }
        String target = request.getQueryString() == null
                ? request.getRequestURI()
                : request.getRequestURI() + "?" + request.getQueryString();
        String stored = scope == null ? key.get() : IdempotencyKey.inScope(scope, key.get());
        Once once = options.once(stored)
                .fingerprint(IdempotencyKey.httpFingerprint(request.getMethod(), target, body));
        new Exchange(new BufferedRequest(request, body), response, chain, options.headers, options.responseBytes)
                .run(once);
    }

    /** Null if a reader was taken before. */
    private byte[] body(HttpServletRequest request) throws IOException {
        InputStream stream;
        try {
            stream = request.getInputStream();
        } catch (IllegalStateException readBefore) {
            return null;
        }
        return stream.readNBytes(options.requestBytes + 1);
    }

    /** Whether there are parameters that are not of the query. */
    private static boolean hasFormFields(HttpServletRequest request) {
        if (!BufferedRequest.isForm(request)) {
            return false;
        }
        String query = request.getQueryString() == null ? "" : request.getQueryString();
        long ofQuery = Arrays.stream(query.split("&")).filter(field -> !field.isEmpty()).count();
        return request.getParameterMap().values().stream().mapToLong(values -> values.length).sum() > ofQuery;
    }

    /** Settings of an {@link IdempotencyFilter}. */
    public static final class Builder {
        private final Onced client;
        private Set<String> methods = Set.of("POST", "PATCH");
        private boolean required = true;
        private String namespace = "default";
        private Function<HttpServletRequest, String> scope;
        private Duration wait = DEFAULT_WAIT;
        private Duration lockTtl;
        private Duration retention;
        private OnLapse onLapse;
        private OnFailure onFailure = OnFailure.RETRY;
        private Set<String> headers = Answer.HEADERS;
        private int requestBytes = DEFAULT_REQUEST_BYTES;
        private long responseBytes = Long.MAX_VALUE;
        private Duration failOpenAfter;

        private Builder(Onced client) {
            this.client = Objects.requireNonNull(client);
        }

        private Once once(String key) {
            Once once = client.once(key).namespace(namespace).waitFor(wait).onFailure(onFailure);
            if (lockTtl != null) {
                once.lockTtl(lockTtl);
            }
            if (retention != null) {
                once.retention(retention);
            }
            if (onLapse != null) {
                once.onLapse(onLapse);
            }
            if (failOpenAfter != null) {
                once.failOpenAfter(failOpenAfter);
            }
            return once;
        }

        /**
         * The methods whose requests are answered once. All others pass.
         *
         * @param methods {@code POST} and {@code PATCH} unless told otherwise
         * @return this
         */
        public Builder methods(String... methods) {
            // As they stand in requests: one in small letters would match none, and take the key from all.
            this.methods = Arrays.stream(methods)
                    .map(method -> method.toUpperCase(Locale.ROOT))
                    .collect(toUnmodifiableSet());
            return this;
        }

        /**
         * Whether a request of these methods must have a key.
         *
         * @param required true unless told otherwise; if not, one without a key passes
         * @return this
         */
        public Builder keyRequired(boolean required) {
            this.required = required;
            return this;
        }

        /**
         * The namespace of the keys.
         *
         * @param namespace {@code default} unless told otherwise
         * @return this
         */
        public Builder namespace(String namespace) {
            this.namespace = Objects.requireNonNull(namespace);
            return this;
        }

        /**
         * Whose key it is, so that two tenants may use the same one. It must be the same when the request is repeated:
         * an account, never {@code Authorization}, whose tokens change. A request without its scope is refused.
         *
         * @param scope null or empty if the request has none
         * @return this
         */
        public Builder scope(Function<HttpServletRequest, String> scope) {
            this.scope = Objects.requireNonNull(scope);
            return this;
        }

        /**
         * The header that says whose key it is. A request that has several of it, or one that is not printable ASCII, is
         * refused like one without.
         *
         * @param name such as {@code X-Tenant}
         * @return this
         */
        public Builder scopeHeader(String name) {
            return scope(request -> {
                List<String> values = Collections.list(request.getHeaders(name));
                boolean printable = values.size() == 1 && values.get(0).chars().allMatch(c -> c >= 0x20 && c < 0x7f);
                return printable ? values.get(0) : null;
            });
        }

        /**
         * How long a repetition waits for the answer.
         *
         * @param wait 10 s unless told otherwise; zero answers at once
         * @return this
         */
        public Builder waitFor(Duration wait) {
            this.wait = Objects.requireNonNull(wait);
            return this;
        }

        /**
         * See {@link Once#lockTtl}.
         *
         * @param ttl that of the namespace unless told otherwise
         * @return this
         */
        public Builder lockTtl(Duration ttl) {
            this.lockTtl = ttl;
            return this;
        }

        /**
         * See {@link Once#retention}.
         *
         * @param retention that of the namespace unless told otherwise
         * @return this
         */
        public Builder retention(Duration retention) {
            this.retention = retention;
            return this;
        }

        /**
         * See {@link Once#onLapse}.
         *
         * @param onLapse that of the namespace unless told otherwise
         * @return this
         */
        public Builder onLapse(OnLapse onLapse) {
            this.onLapse = onLapse;
            return this;
        }

        /**
         * What becomes of the key when a handler answers 5xx, or throws.
         *
         * @param rule {@link OnFailure#RETRY} unless told otherwise
         * @return this
         */
        public Builder onFailure(OnFailure rule) {
            this.onFailure = Objects.requireNonNull(rule);
            return this;
        }

        /**
         * Headers of answers that are stored besides the usual ones.
         *
         * @param names such as {@code X-Request-Cost}
         * @return this
         */
        public Builder storeHeaders(String... names) {
            Set<String> all = new HashSet<>(headers);
            for (String name : names) {
                all.add(name.toLowerCase(Locale.ROOT));
            }
            this.headers = Set.copyOf(all);
            return this;
        }

        /**
         * The largest request with a key.
         *
         * @param bytes 1 MiB unless told otherwise
         * @return this
         */
        public Builder largestRequest(int bytes) {
            this.requestBytes = Math.min(bytes, Integer.MAX_VALUE - 1);
            return this;
        }

        /**
         * The largest answer that is stored.
         *
         * @param bytes what the claim allows unless told otherwise
         * @return this
         */
        public Builder largestResponse(long bytes) {
            this.responseBytes = bytes;
            return this;
        }

        /**
         * Handles requests without a claim if no server of onced answers for this long. See {@link Once#failOpenAfter}.
         *
         * @param silence never unless told otherwise
         * @return this
         */
        public Builder failOpenAfter(Duration silence) {
            this.failOpenAfter = silence;
            return this;
        }

        /**
         * The filter.
         *
         * @return with these settings, which are not to be changed any more
         */
        public IdempotencyFilter build() {
            return new IdempotencyFilter(this);
        }
    }
}
