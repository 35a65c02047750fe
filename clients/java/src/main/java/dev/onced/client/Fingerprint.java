package dev.onced.client;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import com.fasterxml.jackson.databind.node.ObjectNode;
import com.google.protobuf.Message;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.Arrays;
import java.util.List;

/** Digests of requests, of 32 bytes, for {@link Once#fingerprint}. The same in all languages. */
public final class Fingerprint {
    private static final String POINTER = "(/([^~/]|~[01])*)*";
    private static final String INDEX = "0|[1-9][0-9]{0,8}";

    private Fingerprint() {}

    /**
     * Of bytes.
     *
     * @param data as they are
     * @return their SHA-256
     */
    public static byte[] ofBytes(byte[] data) {
        return sha256().digest(data);
    }

    /**
     * Of a value that becomes JSON by Jackson.
     *
     * @param value any that Jackson can write, {@link JsonNode} included
     * @return the SHA-256 of its canonical form by RFC 8785
     * @throws UnfitException if it holds an integer beyond 2⁵³ − 1 either way, NaN, an infinity, or a lone surrogate
     */
    public static byte[] ofJson(Object value) {
        return digest(CanonicalJson.of(tree(value)));
    }

    /**
     * Of JSON that is still text.
     *
     * @param text one JSON value
     * @return the SHA-256 of its canonical form by RFC 8785
     * @throws UnfitException as {@link #ofJson}, if a key is there twice in an object, and if it is not JSON
     */
    public static byte[] ofJsonText(String text) {
        return digest(CanonicalJson.of(CanonicalJson.parse(text)));
    }

    /**
     * Of some fields of a value that becomes JSON by Jackson. A field that is not there is left out.
     *
     * @param value any that Jackson can write, {@link JsonNode} included
     * @param pointers where they are, by RFC 6901, such as {@code /order/id}
     * @return the SHA-256 of the canonical form of the object with these pointers as keys
     * @throws UnfitException as {@link #ofJson}, if nothing is there at all, and if one is no pointer
     */
    public static byte[] ofFields(Object value, String... pointers) {
        return digest(CanonicalJson.of(select(tree(value), Arrays.asList(pointers))));
    }

    /**
     * Of some fields of JSON that is still text. A field that is not there is left out.
     *
     * @param text one JSON value
     * @param pointers where they are, by RFC 6901, such as {@code /order/id}
     * @return the SHA-256 of the canonical form of the object with these pointers as keys
     * @throws UnfitException as {@link #ofJsonText}, if nothing is there at all, and if one is no pointer
     */
    public static byte[] ofFieldsText(String text, String... pointers) {
        return digest(CanonicalJson.of(select(CanonicalJson.parse(text), Arrays.asList(pointers))));
    }

    /**
     * Of a protobuf message.
     *
     * @param message all of it
     * @return the SHA-256 of its full name, a zero byte, and its encoding: fields by number, map entries by key
     * @throws UnfitException if it has fields that are not known here
     */
    public static byte[] ofMessage(Message message) {
        MessageDigest digest = sha256();
        digest.update(message.getDescriptorForType().getFullName().getBytes(StandardCharsets.UTF_8));
        digest.update((byte) 0);
        return digest.digest(Deterministic.encode(message));
    }

    /** Of parts with a zero byte after each, and of a body. */
    static byte[] ofRequest(byte[] body, String... parts) {
        MessageDigest digest = sha256();
        for (String part : parts) {
            digest.update(part.getBytes(StandardCharsets.UTF_8));
            digest.update((byte) 0);
        }
        return digest.digest(body);
    }

    static MessageDigest sha256() {
        try {
            return MessageDigest.getInstance("SHA-256");
        } catch (NoSuchAlgorithmException impossible) {
            throw new IllegalStateException("every Java has SHA-256", impossible);
        }
    }

    private static byte[] digest(String canonical) {
        return sha256().digest(canonical.getBytes(StandardCharsets.UTF_8));
    }

    private static JsonNode tree(Object value) {
        try {
            return Codecs.MAPPER.valueToTree(value);
        } catch (IllegalArgumentException unfit) {
            throw new UnfitException("it cannot be written as JSON: " + FailedException.text(unfit), unfit);
        }
    }

    private static ObjectNode select(JsonNode root, List<String> pointers) {
        ObjectNode selected = JsonNodeFactory.instance.objectNode();
        for (String pointer : pointers) {
            if (!pointer.matches(POINTER)) {
                throw new UnfitException("\"" + pointer + "\" is no JSON pointer: write such as /order/id");
            }
            JsonNode found = find(root, pointer);
            if (found != null) {
                selected.set(pointer, found);
            }
        }
        if (selected.isEmpty()) {
            throw new UnfitException("nothing is there at " + String.join(", ", pointers));
        }
        return selected;
    }

    private static JsonNode find(JsonNode root, String pointer) {
        JsonNode node = root;
        String[] steps = pointer.split("/", -1);
        for (int i = 1; i < steps.length && node != null; i++) {
            String step = steps[i].replace("~1", "/").replace("~0", "~");
            if (node.isArray()) {
                node = step.matches(INDEX) ? node.get(Integer.parseInt(step)) : null;
            } else {
                node = node.get(step);
            }
        }
        return node;
    }
}
