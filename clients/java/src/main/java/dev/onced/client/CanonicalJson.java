package dev.onced.client;

import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.core.StreamReadFeature;
import com.fasterxml.jackson.databind.DeserializationFeature;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.json.JsonMapper;
import java.math.BigDecimal;
import java.math.BigInteger;
import java.math.MathContext;
import java.math.RoundingMode;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;

/** The canonical form of JSON by RFC 8785. What two readers might read differently is refused. */
final class CanonicalJson {
    private static final BigInteger LARGEST_INTEGER = BigInteger.valueOf((1L << 53) - 1);
    /** The digits of any double, at most. */
    private static final int MOST_DIGITS = 17;

    private static final ObjectMapper STRICT = JsonMapper.builder()
            .enable(StreamReadFeature.STRICT_DUPLICATE_DETECTION)
            .enable(DeserializationFeature.FAIL_ON_TRAILING_TOKENS)
            .build();

    private final StringBuilder out = new StringBuilder();

    private CanonicalJson() {}

    static JsonNode parse(String text) {
        try {
            JsonNode node = STRICT.readTree(text);
            if (node.isMissingNode()) {
                throw new UnfitException("it is not JSON: it is empty");
            }
            return node;
        } catch (JsonProcessingException garbled) {
            throw new UnfitException("it is not JSON, or has a key twice: " + garbled.getOriginalMessage(), garbled);
        }
    }

    static String of(JsonNode node) {
        var canonical = new CanonicalJson();
        canonical.write(node);
        return canonical.out.toString();
    }

    private void write(JsonNode node) {
        switch (node.getNodeType()) {
            case OBJECT -> writeObject(node);
            case ARRAY -> {
                out.append('[');
                for (int i = 0; i < node.size(); i++) {
                    out.append(i == 0 ? "" : ",");
                    write(node.get(i));
                }
                out.append(']');
            }
            case STRING -> writeString(node.textValue());
            case NUMBER -> writeNumber(node);
            case BOOLEAN, NULL -> out.append(node.asText());
            // Bytes, as Jackson writes them.
            case BINARY -> writeString(node.asText());
            case MISSING, POJO -> throw new UnfitException("it holds what JSON has no form for");
        }
    }

    private void writeObject(JsonNode node) {
        List<String> keys = new ArrayList<>();
        node.fieldNames().forEachRemaining(keys::add);
        // By UTF-16, as the RFC and Java compare.
        Collections.sort(keys);
        out.append('{');
        for (int i = 0; i < keys.size(); i++) {
            out.append(i == 0 ? "" : ",");
            writeString(keys.get(i));
            out.append(':');
            write(node.get(keys.get(i)));
        }
        out.append('}');
    }

    private void writeString(String text) {
        out.append('"');
        for (int i = 0; i < text.length(); i++) {
            char c = text.charAt(i);
            switch (c) {
                case '"', '\\' -> out.append('\\').append(c);
                case '\b' -> out.append("\\b");
                case '\t' -> out.append("\\t");
                case '\n' -> out.append("\\n");
                case '\f' -> out.append("\\f");
                case '\r' -> out.append("\\r");
                default -> {
                    if (c < 0x20) {
                        out.append(String.format("\\u%04x", (int) c));
                    } else if (!Character.isSurrogate(c)) {
                        out.append(c);
                    } else if (Character.isHighSurrogate(c)
                            && i + 1 < text.length()
                            && Character.isLowSurrogate(text.charAt(i + 1))) {
                        out.append(c).append(text.charAt(++i));
                    } else {
                        throw new UnfitException("a text has a lone surrogate: half of a character");
                    }
                }
            }
        }
        out.append('"');
    }

    private void writeNumber(JsonNode node) {
        if (node.isIntegralNumber()) {
            BigInteger integer = node.bigIntegerValue();
            if (integer.abs().compareTo(LARGEST_INTEGER) > 0) {
                throw new UnfitException(
                        "an integer is beyond 2^53 - 1, which not all readers keep: write it as a string");
            }
            out.append(integer);
            return;
        }
        double number = node.doubleValue();
        if (!Double.isFinite(number)) {
            throw new UnfitException("a number is not finite, or too large to be kept");
        }
        out.append(number(number));
    }

    /** As ECMAScript writes it. Before Java 19 its own form does not always have the fewest digits. */
    static String number(double number) {
        if (number == 0) {
            return "0";
        }
        if (number < 0) {
            return "-" + number(-number);
        }
        BigDecimal shortest = shortest(number);
        String digits = shortest.unscaledValue().toString();
        // The number is 0.DIGITS times ten to this.
        int point = digits.length() - shortest.scale();
        if (digits.length() <= point && point <= 21) {
            return digits + "0".repeat(point - digits.length());
        } else if (0 < point && point <= 21) {
            return digits.substring(0, point) + "." + digits.substring(point);
        } else if (-6 < point && point <= 0) {
            return "0." + "0".repeat(-point) + digits;
        }
        String rest = digits.length() == 1 ? "" : "." + digits.substring(1);
        return digits.charAt(0) + rest + "e" + (point > 0 ? "+" : "-") + Math.abs(point - 1);
    }

    /** Of the decimals with the fewest digits that are read as this number, the closest to it. */
    private static BigDecimal shortest(double number) {
        var exact = new BigDecimal(number);
        for (int digits = 1; digits < MOST_DIGITS; digits++) {
            BigDecimal below = exact.round(new MathContext(digits, RoundingMode.DOWN));
            BigDecimal above = exact.round(new MathContext(digits, RoundingMode.UP));
            boolean belowFits = below.doubleValue() == number;
            boolean aboveFits = above.doubleValue() == number;
            if (belowFits || aboveFits) {
                boolean belowIsCloser = exact.subtract(below).compareTo(above.subtract(exact)) <= 0;
                return (belowFits && (belowIsCloser || !aboveFits) ? below : above).stripTrailingZeros();
            }
        }
        return exact.round(new MathContext(MOST_DIGITS, RoundingMode.HALF_EVEN)).stripTrailingZeros();
    }
}
