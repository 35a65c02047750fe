package dev.onced.client;

import com.google.protobuf.Message;
import java.nio.charset.StandardCharsets;
import java.util.HexFormat;
import java.util.Optional;

/**
 * The key of a request, as its header {@code Idempotency-Key} says it, and what belongs to it: for whoever glues onced to a
 * framework that has no glue here.
 */
public final class IdempotencyKey {
    private static final int LONGEST = 512;
    /** What the digest of the scope leaves of that. */
    private static final int LONGEST_WITH_SCOPE = 479;

    private IdempotencyKey() {}

    /**
     * Reads the value of the header: a quoted string by RFC 9651, or the bare text.
     *
     * @param header with or without spaces around it
     * @param scoped whether a scope will be put before it
     * @return none if it is invalid: empty, too long, or not printable ASCII
     */
    public static Optional<String> parse(String header, boolean scoped) {
        int start = 0;
        int end = header.length();
        while (start < end && header.charAt(start) == ' ') {
            start++;
        }
        while (start < end && header.charAt(end - 1) == ' ') {
            end--;
        }
        if (end - start > 2 * LONGEST + 2) {
            return Optional.empty();
        }
        String key = header.substring(start, end);
        if (key.startsWith("\"")) {
            if (!key.matches("\"([^\"\\\\]|\\\\[\"\\\\])*+\"")) {
                return Optional.empty();
            }
            key = key.substring(1, key.length() - 1).replaceAll("\\\\(.)", "$1");
        }
        boolean printable = key.chars().allMatch(c -> c >= 0x20 && c < 0x7f);
        boolean fits = !key.isEmpty() && key.length() <= (scoped ? LONGEST_WITH_SCOPE : LONGEST);
        return printable && fits ? Optional.of(key) : Optional.empty();
    }

    /**
     * The key in onced of a key that is one of several scopes.
     *
     * @param scope whose key it is, such as an account or a tenant
     * @param key as {@link #parse} read it
     * @return 32 hexadecimal digits for the scope, a colon, and the key
     */
    public static String inScope(String scope, String key) {
        byte[] digest = Fingerprint.ofBytes(scope.getBytes(StandardCharsets.UTF_8));
        return HexFormat.of().formatHex(digest, 0, 16) + ":" + key;
    }

    /**
     * The fingerprint of an HTTP request.
     *
     * @param method such as {@code POST}
     * @param target path and query as sent
     * @param body as sent
     * @return 32 bytes
     */
    public static byte[] httpFingerprint(String method, String target, byte[] body) {
        return Fingerprint.ofRequest(body, "http", method, target);
    }

    /**
     * The fingerprint of a gRPC request.
     *
     * @param method such as {@code /shop.v1.Orders/Place}
     * @param message as it came
     * @return 32 bytes
     */
    public static byte[] grpcFingerprint(String method, byte[] message) {
        return Fingerprint.ofRequest(message, "grpc", method);
    }

    /**
     * The fingerprint of a gRPC request whose message is known: the same whatever order its maps came in.
     *
     * @param method such as {@code /shop.v1.Orders/Place}
     * @param message taken as it came if it has fields that are not known here
     * @return 32 bytes
     */
    public static byte[] grpcFingerprint(String method, Message message) {
        try {
            return grpcFingerprint(method, Deterministic.encode(message));
        } catch (UnfitException newer) {
            return grpcFingerprint(method, message.toByteArray());
        }
    }
}
