package dev.onced.client;

import io.grpc.netty.shaded.io.grpc.netty.GrpcSslContexts;
import io.grpc.netty.shaded.io.netty.handler.ssl.SslContext;
import io.grpc.netty.shaded.io.netty.handler.ssl.SslContextBuilder;
import io.grpc.netty.shaded.io.netty.handler.ssl.SslProvider;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import javax.net.ssl.SSLException;

/**
 * What a client shows of itself, and whom it trusts.
 *
 * @param ca the CA that signed the servers' certificates; null for those that Java trusts
 * @param cert the certificate to show, or null
 * @param key its key, or null
 * @param token who calls, or null
 * @param tokenFile the file of the token, or null
 * @param tokenInPlaintext whether a token may go over a network without TLS
 */
record Access(Path ca, Path cert, Path key, String token, Path tokenFile, boolean tokenInPlaintext) {
    /** Without the token. */
    @Override
    public String toString() {
        return "Access[ca=" + ca + ", cert=" + cert + ", hasToken=" + hasToken() + "]";
    }

    boolean isForTls() {
        return ca != null || cert != null;
    }

    boolean hasToken() {
        return token != null || tokenFile != null;
    }

    /** What to connect by TLS with. The files are read now, and not again. */
    SslContext tls() {
        SslContextBuilder tls = SslContextBuilder.forClient();
        if (ca != null) {
            checkPem(ca, "CERTIFICATE-----", "no certificate");
            tls.trustManager(ca.toFile());
        }
        if (cert != null) {
            checkPem(cert, "CERTIFICATE-----", "no certificate");
            String text = checkPem(key, "PRIVATE KEY-----", "no private key");
            if (!text.contains("BEGIN PRIVATE KEY-----")) {
                throw new SetUpException(key + " holds a key in a form that Java does not read: "
                        + "write it anew with `openssl pkcs8 -topk8 -nocrypt`");
            }
            try {
                tls.keyManager(cert.toFile(), key.toFile());
            } catch (IllegalArgumentException unusable) {
                throw new SetUpException("the files for TLS cannot be used: " + deepest(unusable), unusable);
            }
        }
        try {
            // Java's own, not the native one: `advice` knows what its errors say.
            return GrpcSslContexts.configure(tls, SslProvider.JDK).build();
        } catch (SSLException | IllegalArgumentException unusable) {
            throw new SetUpException("the files for TLS cannot be used: " + deepest(unusable), unusable);
        }
    }

    private static String checkPem(Path file, String label, String without) {
        try {
            String text = Files.readString(file, StandardCharsets.ISO_8859_1);
            if (!text.contains(label)) {
                throw new SetUpException(file + " holds " + without + " in PEM");
            }
            return text;
        } catch (IOException error) {
            throw cannotRead(file, error);
        }
    }

    static SetUpException cannotRead(Path file, IOException error) {
        return new SetUpException("cannot read " + file + ": " + error, error);
    }

    private static String deepest(Throwable thrown) {
        Throwable deepest = thrown;
        while (deepest.getCause() != null) {
            deepest = deepest.getCause();
        }
        return FailedException.text(deepest);
    }

    /**
     * What to do about a connection that failed with this text, where that is known and no later attempt would fare
     * better; otherwise null.
     */
    static String advice(String text, boolean tls) {
        if (has(text, "CertificateExpiredException", "CertificateNotYetValidException", "validity check failed",
                "NotAfter:", "NotBefore:")) {
            return "renew the server's certificate, or set the clock of this machine right";
        } else if (has(text, "No subject alternative", "No name matching")) {
            return "its certificate is for other names: call it by one of them";
        } else if (has(text, "PKIX path", "unable to find valid certification path", "basic constraints check failed",
                "Path does not chain")) {
            return "its certificate is signed by nobody who is trusted here: name its CA with caFile";
        } else if (has(text, "fatal alert: certificate_required")) {
            return "it wants to see a certificate that its tls.client_ca has signed: name one with identityFiles";
        } else if (has(text, "fatal alert: certificate_expired")) {
            return "the certificate of this client has expired";
        } else if (has(text, "fatal alert: unknown_ca", "fatal alert: decrypt_error", "fatal alert: bad_certificate",
                "fatal alert: certificate_unknown")) {
            return "it does not take the certificate of this client: is that signed by the server's tls.client_ca?";
        } else if (tls && has(text, "not an SSL/TLS record", "Unsupported or unrecognized SSL message")) {
            return "it does not speak TLS there: write http:// in place of https://, or name the port that does";
        } else if (!tls && has(text, "speaks TLS only", "first 5 bytes: 1503")) {
            return "it speaks TLS: write https:// in front of its address";
        } else {
            return null;
        }
    }

    private static boolean has(String text, String... parts) {
        for (String part : parts) {
            if (text.contains(part)) {
                return true;
            }
        }
        return false;
    }
}
