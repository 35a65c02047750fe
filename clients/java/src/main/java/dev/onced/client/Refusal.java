package dev.onced.client;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.Message;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.protobuf.StatusProto;
import java.net.ConnectException;
import java.net.UnknownHostException;
import javax.net.ssl.SSLHandshakeException;

/**
 * An error as a server sent it, or as the transport met it.
 *
 * @param code the status code
 * @param reason null if it is not from onced, such as a refused connection
 * @param message the text, with the causes that the transport hides
 * @param cause what the transport met, if it says
 * @param mayBeDone whether the attempt may have been carried out
 */
record Refusal(Status.Code code, String reason, String message, Throwable cause, boolean mayBeDone) {
    /** The domain of every ErrorInfo that onced sends. */
    private static final String DOMAIN = "onced.dev";

    static Refusal of(Status status, Metadata trailers) {
        ErrorInfo info = detail(status, trailers, ErrorInfo.class);
        String reason = info != null && info.getDomain().equals(DOMAIN) ? info.getReason() : null;
        boolean mayBeDone = reason == null
                ? !isUnconnected(status.getCause())
                : info.getMetadataOrDefault("write", "").equals("unknown");
        return new Refusal(status.getCode(), reason, text(status), status.getCause(), mayBeDone);
    }

    /**
     * Whether somebody was there and did not just say that the service is unavailable. Without a reason it may be from a
     * proxy in between; a broken connection, and an attempt that took too long, are no answers.
     */
    boolean isAnswer() {
        return switch (code) {
            case UNAVAILABLE -> false;
            case DEADLINE_EXCEEDED -> reason != null;
            default -> reason != null || !Retry.isBroken(cause, message);
        };
    }

    /** Whether a server was there, and did not take who asked for who they say they are. */
    boolean isOfCredentials() {
        return reason != null && reason.startsWith("CREDENTIALS");
    }

    /** Whether a call was not carried out because its session had too many. */
    static boolean isOfFullSession(Status status, Metadata trailers) {
        ErrorInfo info = detail(status, trailers, ErrorInfo.class);
        return info != null
                && info.getDomain().equals(DOMAIN)
                && info.getReason().equals("OVERLOADED")
                && info.getMetadataOrDefault("limit", "").equals("max_session_calls");
    }

    /** Whether nothing was sent at all. Of TLS only a failed handshake says so: other faults come later, too. */
    private static boolean isUnconnected(Throwable cause) {
        for (Throwable any = cause; any != null; any = any.getCause()) {
            if (any instanceof ConnectException
                    || any instanceof UnknownHostException
                    || any instanceof SSLHandshakeException) {
                return true;
            }
        }
        return false;
    }

    /** How long the server asks to be left alone, by its RetryInfo; 0 if it does not say. */
    static long retryDelay(Status status, Metadata trailers) {
        RetryInfo info = detail(status, trailers, RetryInfo.class);
        return info == null ? 0 : Wire.nanos(info.getRetryDelay());
    }

    private static <T extends Message> T detail(Status status, Metadata trailers, Class<T> type) {
        try {
            com.google.rpc.Status told = StatusProto.fromStatusAndTrailers(status, trailers);
            for (Any detail : told.getDetailsList()) {
                if (detail.is(type)) {
                    return detail.unpack(type);
                }
            }
            return null;
        } catch (InvalidProtocolBufferException | IllegalArgumentException garbled) {
            return null;
        }
    }

    private static String text(Status status) {
        var text = new StringBuilder(
                status.getDescription() == null ? status.getCode().toString() : status.getDescription());
        for (Throwable cause = status.getCause(); cause != null; cause = cause.getCause()) {
            String more = FailedException.text(cause);
            if (text.indexOf(more) < 0) {
                text.append(": ").append(more);
            }
        }
        return text.toString();
    }

    Refusal withMessage(String changed) {
        return new Refusal(code, reason, changed, cause, mayBeDone);
    }

    @Override
    public String toString() {
        return reason == null ? message : message + " (" + reason + ")";
    }
}
