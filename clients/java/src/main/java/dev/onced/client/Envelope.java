package dev.onced.client;

import com.google.protobuf.MessageLite;
import dev.onced.v1.BeginRequest;
import dev.onced.v1.CompleteRequest;
import dev.onced.v1.ReleaseRequest;
import dev.onced.v1.RenewRequest;
import dev.onced.v1.SessionRequest;
import dev.onced.v1.SessionResponse;
import io.grpc.MethodDescriptor;
import io.grpc.Status;
import io.grpc.StatusException;
import io.grpc.protobuf.StatusProto;

/** What a session has around its calls and their answers. */
final class Envelope {
    /** Larger requests would hold up the others. */
    private static final int LARGEST_REQUEST = 64 << 10;

    private Envelope() {}

    /** Null for what goes in no session. */
    static SessionRequest.Builder of(Object request) {
        SessionRequest.Builder message = SessionRequest.newBuilder();
        if (((MessageLite) request).getSerializedSize() > LARGEST_REQUEST) {
            return null;
        } else if (request instanceof BeginRequest begin) {
            return message.setBegin(begin);
        } else if (request instanceof CompleteRequest complete) {
            return message.setComplete(complete);
        } else if (request instanceof RenewRequest renew) {
            return message.setRenew(renew);
        } else if (request instanceof ReleaseRequest release) {
            return message.setRelease(release);
        }
        return null;
    }

    /** The answer to a call of this method; null if it is none. */
    static <A> A answer(SessionResponse response, MethodDescriptor<?, A> method) {
        Object answer =
                switch (response.getAnswerCase()) {
                    case BEGIN -> response.getBegin();
                    case COMPLETE -> response.getComplete();
                    case RENEW -> response.getRenew();
                    case RELEASE -> response.getRelease();
                    default -> null;
                };
        var marshaller = (MethodDescriptor.ReflectableMarshaller<A>) method.getResponseMarshaller();
        Class<A> asked = marshaller.getMessageClass();
        return asked.isInstance(answer) ? asked.cast(answer) : null;
    }

    /** The error in place of an answer; null if there is none. A code that is not known here is UNKNOWN. */
    static StatusException refusal(SessionResponse response) {
        if (response.getError().getCode() == Status.Code.OK.value()) {
            return null;
        }
        int code = Status.fromCodeValue(response.getError().getCode()).getCode().value();
        return StatusProto.toStatusException(response.getError().toBuilder().setCode(code).build());
    }
}
