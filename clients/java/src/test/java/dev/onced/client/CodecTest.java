package dev.onced.client;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;

import com.fasterxml.jackson.core.type.TypeReference;
import com.google.protobuf.ByteString;
import dev.onced.v1.Checkpoint;
import dev.onced.v1.Outcome;
import java.nio.charset.CharacterCodingException;
import java.util.List;
import org.junit.jupiter.api.Test;

class CodecTest {
    record Receipt(String id, long cents) {}

    private static <T> T thereAndBack(Codec<T> codec, T value, String contentType, String bytes) throws Exception {
        Outcome outcome = codec.encode(value);
        assertEquals(contentType, outcome.getContentType());
        assertEquals(ByteString.copyFromUtf8(bytes), outcome.getResponse());
        // One without a content type is read too, and none of another.
        codec.decode(outcome.toBuilder().clearContentType().build());
        Outcome other = outcome.toBuilder().setContentType("image/png").build();
        assertThrows(IllegalArgumentException.class, () -> codec.decode(other));
        return codec.decode(outcome);
    }

    @Test
    void json() throws Exception {
        var receipt = new Receipt("ä", 17);
        String json = "application/json";
        assertEquals(receipt, thereAndBack(Codec.json(Receipt.class), receipt, json, "{\"id\":\"ä\",\"cents\":17}"));
        assertNull(thereAndBack(Codec.json(Receipt.class), null, json, "null"));
        assertNull(thereAndBack(Codec.json(Void.class), null, json, "null"));
        var list = new TypeReference<List<Receipt>>() {};
        assertEquals(
                List.of(receipt),
                thereAndBack(Codec.json(list), List.of(receipt), json, "[{\"id\":\"ä\",\"cents\":17}]"));
    }

    @Test
    void anOlderVersionReadsWhatANewerOneStored() throws Exception {
        Outcome newer = Outcome.newBuilder()
                .setResponse(ByteString.copyFromUtf8("{\"id\":\"a\",\"cents\":1,\"tip\":2}"))
                .build();
        assertEquals(new Receipt("a", 1), Codec.json(Receipt.class).decode(newer));
    }

    @Test
    void bytesAndText() throws Exception {
        byte[] bytes = {0x41, 0x42};
        assertArrayEquals(bytes, thereAndBack(Codec.bytes(), bytes, "application/octet-stream", "AB"));
        assertEquals("zwölf €", thereAndBack(Codec.text(), "zwölf €", "text/plain; charset=utf-8", "zwölf €"));
        assertThrows(CharacterCodingException.class, () -> Codec.text().encode("\ud800"));
        Outcome garbled = Outcome.newBuilder()
                .setResponse(ByteString.copyFrom(new byte[] {(byte) 0xff}))
                .build();
        assertThrows(CharacterCodingException.class, () -> Codec.text().decode(garbled));
    }

    @Test
    void protobuf() throws Exception {
        Checkpoint message = Checkpoint.newBuilder().setSequence(65).build();
        String type = "application/x-protobuf; messageType=\"onced.v1.Checkpoint\"";
        assertEquals(message, thereAndBack(Codec.protobuf(message), message, type, "\bA"));
        // The work is done, so what a newer peer said in it is no reason to leave the key in doubt.
        Checkpoint newer = Checkpoint.parseFrom(new byte[] {8, 65, 120, 1});
        assertEquals(newer, Codec.protobuf(message).decode(Codec.protobuf(message).encode(newer)));
    }
}
