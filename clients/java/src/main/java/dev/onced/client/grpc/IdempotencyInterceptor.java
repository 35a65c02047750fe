package dev.onced.client.grpc;

import dev.onced.client.Claim;
import dev.onced.client.IdempotencyKey;
import dev.onced.client.Once;
import dev.onced.client.Onced;
import dev.onced.client.OnFailure;
import dev.onced.client.OnLapse;
import dev.onced.client.Verdict;
import io.grpc.Context;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.ServerCall;
import io.grpc.ServerCallHandler;
import io.grpc.ServerInterceptor;
import io.grpc.StatusException;
import java.time.Duration;
import java.util.Iterator;
import java.util.Objects;
import java.util.Optional;
import java.util.concurrent.atomic.AtomicReference;
import java.util.function.Function;

/**
 * Carries out a call that has the metadata {@code idempotency-key} once, however often it comes, and gives all repetitions
 * the same answer, with {@code idempotent-replayed: true} in its headers.
 *
 * <p>Put it before the services it is for, with {@code ServerInterceptors.intercept(service, interceptor)}: all their
 * methods then need a key, but those that stream, which cannot have one. The handler runs to its end when its caller hangs
 * up or its deadline passes; its {@link Context} does not end by that. No thread waits meanwhile.
 */
public final class IdempotencyInterceptor implements ServerInterceptor {
    /** How long a repetition waits for the answer unless told otherwise. */
    public static final Duration DEFAULT_WAIT = Duration.ofSeconds(10);

    /** The largest request, in bytes, unless told otherwise. */
    public static final int DEFAULT_REQUEST_BYTES = 1 << 20;

    private static final Metadata.Key<String> KEY =
            Metadata.Key.of("idempotency-key", Metadata.ASCII_STRING_MARSHALLER);

    static final Context.Key<Claim> CLAIM = Context.key("onced-claim");
    static final Context.Key<AtomicReference<Verdict>> VERDICT = Context.key("onced-verdict");

    private final Builder options;

    private IdempotencyInterceptor(Builder options) {
        this.options = options;
    }

    /**
     * An interceptor with the standard settings.
     *
     * @param client not closed by this
     * @return the interceptor
     */
    public static IdempotencyInterceptor of(Onced client) {
        return builder(client).build();
    }

    /**
     * Settings for an interceptor.
     *
     * @param client not closed by this
     * @return the settings
     */
    public static Builder builder(Onced client) {
        return new Builder(client);
    }

    /**
     * The claim under which the call of the current {@link Context} is handled.
     *
     * @return null if it has no key
     */
    public static Claim claim() {
        return CLAIM.get();
    }

    /**
     * Says what becomes of the answer to the call of the current {@link Context}, whatever its status is.
     *
     * @param verdict said before the call is closed. An error that is to be stored is stored as it is
     */
    public static void say(Verdict verdict) {
        AtomicReference<Verdict> said = VERDICT.get();
        if (said != null) {
            said.set(verdict);
        }
    }

    @Override
    public <Q, A> ServerCall.Listener<Q> interceptCall(
            ServerCall<Q, A> call, Metadata headers, ServerCallHandler<Q, A> next) {
        MethodDescriptor<Q, A> method = call.getMethodDescriptor();
        boolean hasKey = headers.containsKey(KEY);
        boolean unary = method.getType() == MethodDescriptor.MethodType.UNARY;
        // Health and reflection are asked by who knows of no keys.
        boolean ofGrpc = method.getFullMethodName().startsWith("grpc.");
        if (ofGrpc || !hasKey && (!unary || !options.required)) {
            return next.startCall(call, headers);
        }
        try {
            if (!unary) {
                throw Refused.IDEMPOTENCY_KEY_INVALID.because("a method that streams takes no idempotency-key");
            }
            String key = key(call, headers);
            call.request(2);
            return new Exchange<>(call, headers, next, options.requestBytes, request ->
                    options.once(key).fingerprint(fingerprint(method, request)));
        } catch (StatusException refused) {
            call.close(refused.getStatus(), refused.getTrailers());
            return new ServerCall.Listener<>() {};
        }
    }

    private String key(ServerCall<?, ?> call, Metadata headers) throws StatusException {
        Iterable<String> all = headers.getAll(KEY);
        if (all == null) {
            throw Refused.IDEMPOTENCY_KEY_MISSING.because("send the metadata idempotency-key");
        }
        Iterator<String> values = all.iterator();
        String header = values.next();
        if (values.hasNext()) {
            throw Refused.IDEMPOTENCY_KEY_INVALID.because("send the metadata idempotency-key once");
        }
        String scope = options.scope == null ? null : options.scope.apply(headers);
        if (options.scope != null && (scope == null || scope.isEmpty())) {
            throw Refused.SCOPE_MISSING.because("say whose idempotency-key it is");
        }
        Optional<String> key = IdempotencyKey.parse(header, scope != null);
        if (key.isEmpty()) {
            throw Refused.IDEMPOTENCY_KEY_INVALID.because("the idempotency-key is to be printable ASCII, 1 to "
                    + (scope == null ? 512 : 479) + " bytes");
        }
        return scope == null ? key.get() : IdempotencyKey.inScope(scope, key.get());
    }

    private static <Q> byte[] fingerprint(MethodDescriptor<Q, ?> method, Exchange.Request<Q> request) {
        String name = "/" + method.getFullMethodName();
        return request.message() instanceof com.google.protobuf.Message message
                ? IdempotencyKey.grpcFingerprint(name, message)
                : IdempotencyKey.grpcFingerprint(name, request.bytes());
    }

    /** Settings of an {@link IdempotencyInterceptor}. */
    public static final class Builder {
        private final Onced client;
        private boolean required = true;
        private String namespace = "default";
        private Function<Metadata, String> scope;
        private Duration wait = DEFAULT_WAIT;
        private Duration lockTtl;
        private Duration retention;
        private OnLapse onLapse;
        private OnFailure onFailure = OnFailure.RETRY;
        private int requestBytes = DEFAULT_REQUEST_BYTES;
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
         * Whether a call that does not stream must have a key.
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
         * Whose key it is, so that two tenants may use the same one. It must be the same when the call is repeated: an
         * account, never {@code authorization}, whose tokens change. A call without its scope is refused.
         *
         * @param scope of the metadata of a call; null or empty if it has none
         * @return this
         */
        public Builder scope(Function<Metadata, String> scope) {
            this.scope = Objects.requireNonNull(scope);
            return this;
        }

        /**
         * The metadata that says whose key it is. A call that has several of it, or one that is not printable ASCII, is
         * refused like one without.
         *
         * @param name such as {@code x-tenant}
         * @return this
         */
        public Builder scopeHeader(String name) {
            Metadata.Key<String> key = Metadata.Key.of(name, Metadata.ASCII_STRING_MARSHALLER);
            return scope(headers -> {
                Iterable<String> all = headers.getAll(key);
                if (all == null) {
                    return null;
                }
                Iterator<String> values = all.iterator();
                String value = values.next();
                boolean printable = !values.hasNext() && value.chars().allMatch(c -> c >= 0x20 && c < 0x7f);
                return printable ? value : null;
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
         * What becomes of the key when a handler ends with an error that is not stored, or throws.
         *
         * @param rule {@link OnFailure#RETRY} unless told otherwise
         * @return this
         */
        public Builder onFailure(OnFailure rule) {
            this.onFailure = Objects.requireNonNull(rule);
            return this;
        }

        /**
         * The largest request with a key.
         *
         * @param bytes 1 MiB unless told otherwise
         * @return this
         */
        public Builder largestRequest(int bytes) {
            this.requestBytes = bytes;
            return this;
        }

        /**
         * Handles calls without a claim if no server of onced answers for this long. See {@link Once#failOpenAfter}.
         *
         * @param silence never unless told otherwise
         * @return this
         */
        public Builder failOpenAfter(Duration silence) {
            this.failOpenAfter = silence;
            return this;
        }

        /**
         * The interceptor.
         *
         * @return with these settings, which are not to be changed any more
         */
        public IdempotencyInterceptor build() {
            return new IdempotencyInterceptor(this);
        }
    }
}
