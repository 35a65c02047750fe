package dev.onced.client;

import com.fasterxml.jackson.core.type.TypeReference;
import com.fasterxml.jackson.databind.JavaType;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.google.protobuf.ByteString;
import com.google.protobuf.Message;
import com.google.protobuf.Parser;
import dev.onced.v1.Outcome;

/**
 * How values become outcomes, and outcomes values. Safe for many threads. A codec reads outcomes of its own content type,
 * and those without one.
 *
 * @param <T> the type of the values
 */
public interface Codec<T> {
    /**
     * What is stored for a value.
     *
     * @param value what the work returned
     * @return a response, not an error
     * @throws Exception if it cannot be encoded: the key is then in doubt, since the work was done
     */
    Outcome encode(T value) throws Exception;

    /**
     * The value of what is stored.
     *
     * @param outcome a response, of any content type
     * @return the value
     * @throws Exception if it cannot be read: the run then ends with {@link UnreadableException}
     */
    T decode(Outcome outcome) throws Exception;

    /**
     * JSON by Jackson, with those of its modules that are on the class path. Fields that a class does not have are
     * ignored, so that an older version of a service reads what a newer one stored.
     *
     * @param type of the values
     * @param <T> the type of the values
     * @return reads and writes {@code application/json}
     */
    static <T> Codec<T> json(Class<T> type) {
        return json(Codecs.MAPPER, Codecs.MAPPER.constructType(type));
    }

    /**
     * As {@link #json(Class)}, for types with parameters.
     *
     * @param type of the values, such as {@code new TypeReference<List<Receipt>>() {}}
     * @param <T> the type of the values
     * @return reads and writes {@code application/json}
     */
    static <T> Codec<T> json(TypeReference<T> type) {
        return json(Codecs.MAPPER, Codecs.MAPPER.constructType(type));
    }

    /**
     * JSON by a mapper of the caller's.
     *
     * @param mapper not changed any more
     * @param type of the values
     * @param <T> the type of the values
     * @return reads and writes {@code application/json}
     */
    static <T> Codec<T> json(ObjectMapper mapper, JavaType type) {
        return Codecs.of(
                "application/json",
                value -> ByteString.copyFrom(mapper.writerFor(type).writeValueAsBytes(value)),
                bytes -> mapper.readValue(bytes.toByteArray(), type));
    }

    /**
     * Bytes as they are.
     *
     * @return reads and writes {@code application/octet-stream}
     */
    static Codec<byte[]> bytes() {
        return Codecs.of("application/octet-stream", ByteString::copyFrom, ByteString::toByteArray);
    }

    /**
     * Text, which must be whole: no half of a surrogate pair.
     *
     * @return reads and writes {@code text/plain; charset=utf-8}
     */
    static Codec<String> text() {
        return Codecs.of("text/plain; charset=utf-8", Codecs::utf8, Codecs::text);
    }

    /**
     * A protobuf message, in its deterministic encoding.
     *
     * @param example any message of the type, such as {@code Receipt.getDefaultInstance()}
     * @param <M> the type of the messages
     * @return reads and writes {@code application/x-protobuf; messageType="FULL.NAME"}
     */
    static <M extends Message> Codec<M> protobuf(M example) {
        String type = example.getDescriptorForType().getFullName();
        @SuppressWarnings("unchecked") // A message's parser is of its own type.
        var parser = (Parser<M>) example.getParserForType();
        return Codecs.of(
                "application/x-protobuf; messageType=\"" + type + "\"",
                message -> ByteString.copyFrom(Deterministic.encodeAll(message)),
                parser::parseFrom);
    }
}
