package example.payment;

import com.fasterxml.jackson.databind.JsonNode;

/**
 * What is asked for.
 *
 * @param payment the name of the payment, the same in each repetition
 * @param account whose money it is
 * @param amount in cents
 */
record Order(String payment, String account, long amount) {
    /** The largest amount that each reader of JSON understands. */
    private static final long MAX = (1L << 53) - 1;

    static Order from(JsonNode body) {
        return new Order(text(body, "payment"), text(body, "account"), amount(body));
    }

    private static String text(JsonNode body, String field) {
        JsonNode value = body.get(field);
        if (value == null || value.isNull()) {
            throw new BadField(field + " is missing");
        }
        if (!value.isTextual() || value.textValue().isEmpty() || value.textValue().length() > 100) {
            throw new BadField(field + " is to be a text of 1 to 100 characters");
        }
        return value.textValue();
    }

    private static long amount(JsonNode body) {
        JsonNode value = body.get("amount");
        if (value == null || value.isNull()) {
            throw new BadField("amount is missing");
        }
        if (!value.isIntegralNumber() || !value.canConvertToLong() || value.longValue() < 1 || value.longValue() > MAX) {
            throw new BadField("amount is to be a whole number of cents, from 1 on");
        }
        return value.longValue();
    }

    /** A field that cannot be used; the message names it. */
    static final class BadField extends IllegalArgumentException {
        private static final long serialVersionUID = 1L;

        BadField(String message) {
            super(message);
        }
    }
}
