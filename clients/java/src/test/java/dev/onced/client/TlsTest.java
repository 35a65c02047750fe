package dev.onced.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.InputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.KeyStore;
import java.time.Duration;
import java.util.Base64;
import java.util.List;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.io.TempDir;

/** TLS, and what is said where it is set up wrong. */
@Timeout(60)
class TlsTest {
    @TempDir
    Path dir;

    @BeforeEach
    void makeCertificates() throws Exception {
        certificate("server", "127.0.0.1", "ip:127.0.0.1");
        certificate("stranger", "stranger", "dns:stranger.example");
    }

    /** Signed by itself, by the JDK's own tool, written as PEM. */
    private void certificate(String name, String subject, String alternative) throws Exception {
        Path store = dir.resolve(name + ".p12");
        Path keytool = Path.of(System.getProperty("java.home"), "bin", "keytool");
        var process = new ProcessBuilder(List.of(
                        keytool.toString(), "-genkeypair", "-alias", "a", "-keyalg", "RSA", "-keysize", "2048",
                        "-dname", "CN=" + subject, "-ext", "san=" + alternative, "-validity", "2",
                        "-storetype", "PKCS12", "-storepass", "password", "-keystore", store.toString()))
                .redirectErrorStream(true)
                .start();
        String told = new String(process.getInputStream().readAllBytes());
        assertEquals(0, process.waitFor(), told);
        KeyStore keys = KeyStore.getInstance("PKCS12");
        try (InputStream in = Files.newInputStream(store)) {
            keys.load(in, "password".toCharArray());
        }
        pem(name + ".crt", "CERTIFICATE", keys.getCertificate("a").getEncoded());
        pem(name + ".key", "PRIVATE KEY", keys.getKey("a", "password".toCharArray()).getEncoded());
    }

    private void pem(String file, String label, byte[] bytes) throws Exception {
        String text = Base64.getMimeEncoder(64, new byte[] {'\n'}).encodeToString(bytes);
        Files.writeString(
                dir.resolve(file), "-----BEGIN " + label + "-----\n" + text + "\n-----END " + label + "-----\n");
    }

    private TestServer serve(String certificate) {
        return TestServer.start(
                "--tls-cert", dir.resolve(certificate + ".crt").toString(),
                "--tls-key", dir.resolve(certificate + ".key").toString());
    }

    private static String refused(Onced client) {
        try (client) {
            NotBegunException refused = assertThrows(NotBegunException.class, () -> client.once("k")
                    .failOpenAfter(Duration.ofMillis(100))
                    .run(String.class, claim -> "it ran"));
            assertEquals(0, client.unprotectedRuns());
            CallException call = (CallException) refused.getCause();
            assertTrue(call.isSetUpWrong(), refused.getMessage());
            return refused.getMessage();
        }
    }

    private Onced connect(String server, String ca) {
        return Onced.builder(server).caFile(dir.resolve(ca + ".crt")).build();
    }

    @Test
    void aServerIsCalledByTls() {
        try (TestServer server = serve("server");
                Onced client = connect("https://" + server.address(), "server")) {
            assertTrue(client.once("k").run(String.class, claim -> "done").ranHere());
        }
    }

    @Test
    void whatIsSetUpWrongIsToldAtOnceWithWhatToDo() {
        try (TestServer server = serve("server")) {
            String untrusted = refused(connect("https://" + server.address(), "stranger"));
            assertTrue(untrusted.contains("name its CA with caFile"), untrusted);
            String plaintext = refused(Onced.connect(server.address()));
            assertTrue(plaintext.contains("write https:// in front"), plaintext);
        }
        try (TestServer server = serve("stranger")) {
            String misnamed = refused(connect("https://" + server.address(), "stranger"));
            assertTrue(misnamed.contains("call it by one of them"), misnamed);
        }
        try (TestServer server = TestServer.start()) {
            String tls = refused(connect("https://" + server.address(), "server"));
            assertTrue(tls.contains("write http:// in place of https://"), tls);
        }
    }

    @Test
    void aServerThatWantsACertificateSaysSo() {
        try (TestServer server = TestServer.start(
                "--tls-cert", dir.resolve("server.crt").toString(),
                "--tls-key", dir.resolve("server.key").toString(),
                "--tls-client-ca", dir.resolve("server.crt").toString())) {
            String none = refused(connect("https://" + server.address(), "server"));
            assertTrue(none.contains("name one with identityFiles"), none);
            // Java shows none that the server would not take.
            String wrong = refused(Onced.builder("https://" + server.address())
                    .caFile(dir.resolve("server.crt"))
                    .identityFiles(dir.resolve("stranger.crt"), dir.resolve("stranger.key"))
                    .build());
            assertTrue(wrong.contains("tls.client_ca has signed"), wrong);
        }
    }
}
