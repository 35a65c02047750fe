package dev.onced.client;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.google.protobuf.ByteString;
import com.google.protobuf.Message;
import com.google.protobuf.UnknownFieldSet;
import com.google.protobuf.util.JsonFormat;
import dev.onced.v1.Outcome;
import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.List;
import java.util.Optional;
import org.junit.jupiter.api.Test;

/** What all libraries agree on: clients/vectors. */
class VectorsTest {
    private static final JsonNode VECTORS = read();

    private static JsonNode read() {
        String root = System.getProperty("onced.root");
        try {
            return new ObjectMapper()
                    .readTree(Path.of(root, "clients/vectors/fingerprints.json").toFile());
        } catch (IOException missing) {
            throw new IllegalStateException("the vectors are missing", missing);
        }
    }

    private static List<JsonNode> cases(String section) {
        List<JsonNode> cases = new ArrayList<>();
        VECTORS.path(section).forEach(cases::add);
        assertFalse(cases.isEmpty(), section);
        return cases;
    }

    private static String text(JsonNode vector, String field) {
        return vector.get(field).textValue();
    }

    private static String[] pointers(JsonNode vector) {
        List<String> pointers = new ArrayList<>();
        vector.get("pointers").forEach(pointer -> pointers.add(pointer.textValue()));
        return pointers.toArray(String[]::new);
    }

    private static void same(JsonNode vector, byte[] digest) {
        assertEquals(text(vector, "digest"), HexFormat.of().formatHex(digest), vector::toString);
    }

    @Test
    void bytes() throws IOException {
        for (JsonNode vector : cases("bytes")) {
            same(vector, Fingerprint.ofBytes(vector.get("data").binaryValue()));
        }
    }

    @Test
    void json() throws IOException {
        for (JsonNode vector : cases("json")) {
            assertEquals(text(vector, "canonical"), CanonicalJson.of(CanonicalJson.parse(text(vector, "text"))));
            same(vector, Fingerprint.ofJsonText(text(vector, "text")));
            same(vector, Fingerprint.ofJson(new ObjectMapper().readTree(text(vector, "text"))));
        }
        for (JsonNode vector : cases("json_refused")) {
            String text = text(vector, "text");
            assertThrows(UnfitException.class, () -> Fingerprint.ofJsonText(text), vector::toString);
        }
        assertThrows(UnfitException.class, () -> Fingerprint.ofJson(new double[] {Double.NaN}));
        assertThrows(UnfitException.class, () -> Fingerprint.ofJson(new double[] {Double.NEGATIVE_INFINITY}));
        assertThrows(UnfitException.class, () -> Fingerprint.ofJson(new long[] {1L << 53}));
        assertThrows(UnfitException.class, () -> Fingerprint.ofJson(new Object()));
    }

    @Test
    void fields() {
        for (JsonNode vector : cases("fields")) {
            same(vector, Fingerprint.ofFieldsText(text(vector, "text"), pointers(vector)));
        }
        for (JsonNode vector : cases("fields_refused")) {
            String text = text(vector, "text");
            assertThrows(
                    UnfitException.class, () -> Fingerprint.ofFieldsText(text, pointers(vector)), vector::toString);
        }
    }

    @Test
    void protobuf() throws Exception {
        for (JsonNode vector : cases("protobuf")) {
            String type = text(vector, "type");
            assertEquals("onced.v1.", type.substring(0, 9));
            Message.Builder builder = (Message.Builder) Class.forName("dev." + type).getMethod("newBuilder").invoke(null);
            JsonFormat.parser().merge(vector.get("json").toString(), builder);
            Message message = builder.build();
            assertArrayEquals(vector.get("encoded").binaryValue(), Deterministic.encode(message), vector::toString);
            same(vector, Fingerprint.ofMessage(message));
        }
        Message newer = Outcome.newBuilder()
                .setUnknownFields(UnknownFieldSet.newBuilder()
                        .addField(99, UnknownFieldSet.Field.newBuilder().addVarint(1).build())
                        .build())
                .build();
        assertThrows(UnfitException.class, () -> Fingerprint.ofMessage(newer));
    }

    @Test
    void mapsAreOrderedWhateverOrderTheyCameIn() {
        Outcome.Builder one = Outcome.newBuilder().setResponse(ByteString.copyFromUtf8("x"));
        Outcome.Builder other = one.clone();
        for (String key : new String[] {"z", "\uffee", "\ud83d\ude00", "a"}) {
            one.putMetadata(key, "1");
        }
        for (String key : new String[] {"a", "\ud83d\ude00", "\uffee", "z"}) {
            other.putMetadata(key, "1");
        }
        assertArrayEquals(Fingerprint.ofMessage(one.build()), Fingerprint.ofMessage(other.build()));
    }

    @Test
    void http() throws IOException {
        for (JsonNode vector : cases("http")) {
            byte[] body = vector.get("body").binaryValue();
            same(vector, IdempotencyKey.httpFingerprint(text(vector, "method"), text(vector, "target"), body));
        }
    }

    @Test
    void keysAndScopes() {
        for (JsonNode vector : cases("keys")) {
            assertEquals(Optional.of(text(vector, "key")), IdempotencyKey.parse(text(vector, "header"), false));
        }
        for (JsonNode vector : cases("keys_refused")) {
            assertEquals(Optional.empty(), IdempotencyKey.parse(text(vector, "header"), false), vector::toString);
        }
        assertEquals(Optional.of("x".repeat(479)), IdempotencyKey.parse("x".repeat(479), true));
        assertEquals(Optional.empty(), IdempotencyKey.parse("x".repeat(480), true));
        for (JsonNode vector : cases("scope")) {
            assertEquals(text(vector, "stored"), IdempotencyKey.inScope(text(vector, "scope"), text(vector, "key")));
        }
    }

    @Test
    void numbersAreReadAsWhatTheyWere() {
        var random = new java.util.Random(17);
        for (int i = 0; i < 20_000; i++) {
            double number = Double.longBitsToDouble(random.nextLong());
            if (Double.isFinite(number)) {
                assertEquals(number, Double.parseDouble(CanonicalJson.number(number)));
            }
        }
    }
}
