package dev.onced.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.protobuf.Any;
import com.google.protobuf.Duration;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusException;
import io.grpc.protobuf.StatusProto;
import java.io.IOException;
import java.net.ConnectException;
import java.net.UnknownHostException;
import java.util.OptionalLong;
import java.util.concurrent.TimeUnit;
import javax.net.ssl.SSLException;
import javax.net.ssl.SSLHandshakeException;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class RetryTest {
    private static final Metadata.Key<String> PUSHBACK =
            Metadata.Key.of("grpc-retry-pushback-ms", Metadata.ASCII_STRING_MARSHALLER);

    private static StatusException refusal(Status.Code code, String reason) {
        return StatusProto.toStatusException(com.google.rpc.Status.newBuilder()
                .setCode(code.value())
                .setMessage("no")
                .addDetails(Any.pack(
                        ErrorInfo.newBuilder().setDomain("onced.dev").setReason(reason).build()))
                .build());
    }

    private static OptionalLong advice(StatusException refusal) {
        return Retry.advice(refusal.getStatus(), refusal.getTrailers());
    }

    @ParameterizedTest
    @CsvSource({"UNAVAILABLE,STORE_UNAVAILABLE", "DEADLINE_EXCEEDED,DEADLINE_EXCEEDED"})
    void whatMayPassIsRepeated(Status.Code code, String reason) {
        assertEquals(OptionalLong.of(0), advice(refusal(code, reason)));
    }

    @ParameterizedTest
    @CsvSource({
        "ABORTED,CLAIM_LOST",
        "INTERNAL,INTERNAL",
        "CANCELLED,CANCELLED",
        "UNKNOWN,INTERNAL",
        "RESOURCE_EXHAUSTED,STORE_FULL",
        "INVALID_ARGUMENT,KEY_REQUIRED"
    })
    void whatAServerRefusedIsNot(Status.Code code, String reason) {
        assertEquals(OptionalLong.empty(), advice(refusal(code, reason)));
    }

    @Test
    void brokenConnectionsAreToldFromServers() {
        Metadata none = new Metadata();
        assertEquals(OptionalLong.of(0), Retry.advice(Status.CANCELLED, none));
        assertEquals(OptionalLong.of(0), Retry.advice(Status.UNKNOWN, none));
        Status reset = Status.INTERNAL.withDescription("HTTP/2 error code: INTERNAL_ERROR\nReceived Rst Stream");
        assertEquals(OptionalLong.of(0), Retry.advice(reset, none));
        assertEquals(OptionalLong.of(0), Retry.advice(Status.INTERNAL.withCause(new IOException("broken pipe")), none));
        assertEquals(OptionalLong.empty(), Retry.advice(Status.INTERNAL.withDescription("a bug"), none));
        assertEquals(OptionalLong.empty(), Retry.advice(Status.UNIMPLEMENTED, none));
    }

    @Test
    void aPushbackIsReadFromMetadataOrRetryInfo() {
        StatusException overloaded = refusal(Status.Code.UNAVAILABLE, "OVERLOADED");
        overloaded.getTrailers().put(PUSHBACK, "250");
        assertEquals(OptionalLong.of(TimeUnit.MILLISECONDS.toNanos(250)), advice(overloaded));

        for (String forbids : new String[] {"-1", "soon", "", "1.5"}) {
            StatusException forbidden = refusal(Status.Code.UNAVAILABLE, "OVERLOADED");
            forbidden.getTrailers().put(PUSHBACK, forbids);
            assertEquals(OptionalLong.empty(), advice(forbidden), forbids);
        }

        RetryInfo later = RetryInfo.newBuilder()
                .setRetryDelay(Duration.newBuilder().setSeconds(3))
                .build();
        StatusException told = StatusProto.toStatusException(com.google.rpc.Status.newBuilder()
                .setCode(Status.Code.UNAVAILABLE.value())
                .addDetails(Any.pack(later))
                .build());
        assertEquals(OptionalLong.of(TimeUnit.SECONDS.toNanos(3)), advice(told));
    }

    @Test
    void otherServersAreTriedAtOnceAndRoundsWaitLongerUpToACap() {
        long pushback = TimeUnit.SECONDS.toNanos(5);
        assertEquals(0, Retry.pause(1, 3, pushback));
        assertEquals(0, Retry.pause(2, 3, pushback));
        long asked = Retry.pause(3, 3, pushback);
        assertTrue(asked >= pushback && asked <= pushback + pushback / 8, () -> "" + asked);
        for (int attempts = 1; attempts < 100; attempts++) {
            long pause = Retry.pause(attempts, 1, 0);
            assertTrue(pause >= Retry.FIRST_WAIT / 2 && pause <= Retry.LONGEST_WAIT, () -> "" + pause);
        }
        assertTrue(Retry.pause(90, 1, 0) >= Retry.LONGEST_WAIT / 2);
    }

    private static boolean mayBeDone(Throwable cause) {
        return Refusal.of(Status.UNAVAILABLE.withCause(cause), new Metadata()).mayBeDone();
    }

    @Test
    void onlyWhatNeverConnectedIsKnownNotToBeDone() {
        assertFalse(mayBeDone(new ConnectException("refused")));
        assertFalse(mayBeDone(new UnknownHostException("nowhere")));
        assertFalse(mayBeDone(new IOException(new SSLHandshakeException("PKIX path building failed"))));
        assertTrue(mayBeDone(new SSLException("bad record MAC")));
        assertTrue(mayBeDone(new IOException("broken pipe")));
        assertTrue(mayBeDone(null));
    }

    private static boolean isAnswer(Status status) {
        return Refusal.of(status, new Metadata()).isAnswer();
    }

    @Test
    void anAnswerIsToldFromSilence() {
        assertTrue(isAnswer(Status.PERMISSION_DENIED));
        assertTrue(isAnswer(Status.UNIMPLEMENTED.withDescription("HTTP status code 404")));
        assertTrue(isAnswer(Status.UNKNOWN));
        assertFalse(isAnswer(Status.UNAVAILABLE.withDescription("io exception")));
        assertFalse(isAnswer(Status.DEADLINE_EXCEEDED));
        assertFalse(isAnswer(Status.CANCELLED.withDescription("RST_STREAM closed stream. HTTP/2 error code: CANCEL")));
        assertFalse(isAnswer(Status.INTERNAL.withCause(new IOException("broken pipe"))));
        StatusException late = refusal(Status.Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED");
        assertTrue(Refusal.of(late.getStatus(), late.getTrailers()).isAnswer());
    }
}
