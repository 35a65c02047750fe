package dev.onced.client;

import com.fasterxml.jackson.databind.DeserializationFeature;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.google.protobuf.ByteString;
import dev.onced.v1.Outcome;
import java.nio.ByteBuffer;
import java.nio.CharBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;

/** What the codecs have in common. */
final class Codecs {
    static final ObjectMapper MAPPER =
            new ObjectMapper().findAndRegisterModules().disable(DeserializationFeature.FAIL_ON_UNKNOWN_PROPERTIES);

    private Codecs() {}

    interface Step<A, B> {
        B apply(A from) throws Exception;
    }

    static <T> Codec<T> of(String contentType, Step<T, ByteString> encode, Step<ByteString, T> decode) {
        return new Codec<>() {
            @Override
            public Outcome encode(T value) throws Exception {
                return Outcome.newBuilder()
                        .setResponse(encode.apply(value))
                        .setContentType(contentType)
                        .build();
            }

            @Override
            public T decode(Outcome outcome) throws Exception {
                String stored = outcome.getContentType();
                if (!stored.isEmpty() && !stored.equals(contentType)) {
                    throw new IllegalArgumentException("it is " + stored + ", and " + contentType + " was expected");
                }
                return decode.apply(outcome.getResponse());
            }
        };
    }

    static ByteString utf8(String text) throws CharacterCodingException {
        return ByteString.copyFrom(StandardCharsets.UTF_8.newEncoder().encode(CharBuffer.wrap(text)));
    }

    static String text(ByteString bytes) throws CharacterCodingException {
        return StandardCharsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(bytes.toByteArray())).toString();
    }
}
