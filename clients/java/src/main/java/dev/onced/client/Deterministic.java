package dev.onced.client;

import com.google.protobuf.ByteString;
import com.google.protobuf.CodedOutputStream;
import com.google.protobuf.Descriptors.EnumValueDescriptor;
import com.google.protobuf.Descriptors.FieldDescriptor;
import com.google.protobuf.DynamicMessage;
import com.google.protobuf.Message;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.util.Comparator;
import java.util.List;
import java.util.Map;

/**
 * The encoding of a protobuf message that is the same in all languages: fields by number, map entries by key. Java's own
 * orders texts by UTF-16 and unsigned numbers as signed ones.
 */
final class Deterministic {
    private final boolean keepsUnknown;

    private Deterministic(boolean keepsUnknown) {
        this.keepsUnknown = keepsUnknown;
    }

    /** Unknown fields are refused: nobody here can order them. */
    static byte[] encode(Message message) {
        return new Deterministic(false).bytes(message);
    }

    /** With unknown fields behind the others, as they came. */
    static byte[] encodeAll(Message message) {
        return new Deterministic(true).bytes(message);
    }

    private byte[] bytes(Message message) {
        var bytes = new ByteArrayOutputStream();
        var out = CodedOutputStream.newInstance(bytes);
        try {
            write(message, out);
            out.flush();
        } catch (IOException impossible) {
            throw new UncheckedIOException(impossible);
        }
        return bytes.toByteArray();
    }

    private void write(Message message, CodedOutputStream out) throws IOException {
        if (!keepsUnknown && !message.getUnknownFields().asMap().isEmpty()) {
            throw new UnfitException(message.getDescriptorForType().getFullName()
                    + " has fields that are not known here: is its sender newer?");
        }
        for (Map.Entry<FieldDescriptor, Object> entry : message.getAllFields().entrySet()) {
            FieldDescriptor field = entry.getKey();
            if (field.getJavaType() != FieldDescriptor.JavaType.MESSAGE) {
                // Alone in a message, there is nothing left to order.
                DynamicMessage.newBuilder(message.getDescriptorForType())
                        .setField(field, entry.getValue())
                        .buildPartial()
                        .writeTo(out);
            } else if (field.isRepeated()) {
                for (Message element : elements(field, entry.getValue())) {
                    write(field, element, out);
                }
            } else {
                write(field, (Message) entry.getValue(), out);
            }
        }
        message.getUnknownFields().writeTo(out);
    }

    private void write(FieldDescriptor field, Message message, CodedOutputStream out) throws IOException {
        if (field.getType() == FieldDescriptor.Type.GROUP) {
            // Its tags stand around its fields.
            out.writeTag(field.getNumber(), 3);
            write(message, out);
            out.writeTag(field.getNumber(), 4);
        } else if (field.isMapField()) {
            out.writeByteArray(field.getNumber(), encodeEntry(message));
        } else {
            out.writeByteArray(field.getNumber(), bytes(message));
        }
    }

    /** Key and value are both written, also where they are the default. */
    private byte[] encodeEntry(Message entry) throws IOException {
        var bytes = new ByteArrayOutputStream();
        var out = CodedOutputStream.newInstance(bytes);
        for (FieldDescriptor field : entry.getDescriptorForType().getFields()) {
            Object part = entry.getField(field);
            if (part instanceof Message message) {
                out.writeByteArray(field.getNumber(), bytes(message));
            } else {
                writeScalar(field, part, out);
            }
        }
        out.flush();
        return bytes.toByteArray();
    }

    /** Keys, and values that are no messages. */
    private static void writeScalar(FieldDescriptor field, Object value, CodedOutputStream out) throws IOException {
        int number = field.getNumber();
        switch (field.getType()) {
            case BOOL -> out.writeBool(number, (Boolean) value);
            case STRING -> out.writeString(number, (String) value);
            case BYTES -> out.writeBytes(number, (ByteString) value);
            case DOUBLE -> out.writeDouble(number, (Double) value);
            case FLOAT -> out.writeFloat(number, (Float) value);
            case ENUM -> out.writeEnum(number, ((EnumValueDescriptor) value).getNumber());
            case INT32 -> out.writeInt32(number, (Integer) value);
            case INT64 -> out.writeInt64(number, (Long) value);
            case UINT32 -> out.writeUInt32(number, (Integer) value);
            case UINT64 -> out.writeUInt64(number, (Long) value);
            case SINT32 -> out.writeSInt32(number, (Integer) value);
            case SINT64 -> out.writeSInt64(number, (Long) value);
            case FIXED32 -> out.writeFixed32(number, (Integer) value);
            case FIXED64 -> out.writeFixed64(number, (Long) value);
            case SFIXED32 -> out.writeSFixed32(number, (Integer) value);
            case SFIXED64 -> out.writeSFixed64(number, (Long) value);
            case MESSAGE, GROUP -> throw new IllegalArgumentException(field.getFullName());
        }
    }

    private static List<Message> elements(FieldDescriptor field, Object value) {
        @SuppressWarnings("unchecked") // So says the descriptor.
        var elements = (List<Message>) value;
        if (!field.isMapField()) {
            return elements;
        }
        FieldDescriptor key = field.getMessageType().findFieldByNumber(1);
        return elements.stream()
                .sorted(Comparator.comparing(entry -> entry.getField(key), byKey(key)))
                .toList();
    }

    private static Comparator<Object> byKey(FieldDescriptor key) {
        return switch (key.getType()) {
            case STRING -> Comparator.comparing(
                    text -> ByteString.copyFromUtf8((String) text), ByteString.unsignedLexicographicalComparator());
            case BOOL -> Comparator.comparing(Boolean.class::cast);
            case UINT32, FIXED32 -> (a, b) -> Integer.compareUnsigned((Integer) a, (Integer) b);
            case UINT64, FIXED64 -> (a, b) -> Long.compareUnsigned((Long) a, (Long) b);
            default -> Comparator.comparing(number -> ((Number) number).longValue());
        };
    }
}
