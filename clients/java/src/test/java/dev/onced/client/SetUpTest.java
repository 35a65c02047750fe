package dev.onced.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

class SetUpTest {
    @TempDir
    Path dir;

    private static String refused(Onced.Builder builder) {
        return assertThrows(SetUpException.class, builder::build).getMessage();
    }

    @ParameterizedTest
    @ValueSource(strings = {
        "127.0.0.1:7411", "http://onced.internal:7411", "[::1]:7411", "https://onced:7411", "a:1, b:2", "http://a:1/"
    })
    void addressesOfEachFormAreTaken(String servers) {
        Onced.connect(servers).close();
    }

    @ParameterizedTest
    @CsvSource({
        "127.0.0.1,port",
        "etcd://127.0.0.1:1,HOST:PORT",
        "a b:1,HOST:PORT",
        "http://a:1/path,HOST:PORT",
        "a:99999,HOST:PORT",
        "'',at least one"
    })
    void othersAreRefusedBeforeAnythingIsSent(String servers, String why) {
        String refused = refused(Onced.builder(servers));
        assertTrue(refused.contains(why), refused);
    }

    @Test
    void aTokenGoesOverNoNetworkWithoutTls() {
        String refused = refused(Onced.builder("onced.example:7411").token("hunter2"));
        assertTrue(refused.contains("https://") && !refused.contains("hunter2"), refused);
        Onced.builder("127.0.0.1:7411").token("t").build().close();
        Onced.builder("onced.example:7411").token("t").allowTokenInPlaintext().build().close();
    }

    @ParameterizedTest
    @CsvSource({
        "127.0.0.1,true", "127.9.9.9,true", "[::1],true", "localhost,true",
        "10.0.0.1,false", "onced,false", "[2001:db8::1],false", "0.0.0.0,false", "localhost.example.com,false"
    })
    void loopbackIsToldFromTheNetwork(String host, boolean loopback) {
        assertEquals(loopback, Server.isLoopback(host));
    }

    @Test
    void filesAreLookedAtWhenTheClientIsMade() throws Exception {
        Path none = dir.resolve("none");
        Path text = Files.writeString(dir.resolve("text"), "hello");
        Path old = Files.writeString(dir.resolve("old"), "-----BEGIN EC PRIVATE KEY-----\n");
        Path cert = Files.writeString(dir.resolve("cert"), "-----BEGIN CERTIFICATE-----\n");
        assertTrue(refused(Onced.builder("https://a:1").caFile(none)).contains("cannot read " + none));
        assertTrue(refused(Onced.builder("https://a:1").caFile(text)).contains("no certificate"));
        assertTrue(refused(Onced.builder("https://a:1").identityFiles(cert, text)).contains("no private key"));
        assertTrue(refused(Onced.builder("https://a:1").identityFiles(cert, old)).contains("openssl pkcs8"));
        assertTrue(refused(Onced.builder("http://a:1").caFile(cert)).contains("write https://"));
        assertTrue(refused(Onced.builder("127.0.0.1:1").tokenFile(none)).contains("cannot read " + none));
        assertTrue(refused(Onced.builder("127.0.0.1:1").token("a\nb")).contains("one line"));
        assertTrue(refused(Onced.builder("127.0.0.1:1").token("")).contains("empty"));
    }

    @Test
    void aTokenIsReadAgainWhenItIsOldOrRefused() throws Exception {
        Path file = Files.writeString(dir.resolve("token"), "one\n");
        Bearer bearer = Bearer.of(new Access(null, null, null, null, file, false), 0);
        assertEquals("Bearer one", bearer.header(seconds(4)));
        assertFalse(bearer.renew("Bearer one", seconds(4)));
        Files.writeString(file, "two");
        assertEquals("Bearer one", bearer.header(seconds(8)));
        assertEquals("Bearer two", bearer.header(seconds(9)));
        assertTrue(bearer.renew("Bearer one", seconds(9)), "another call has read it meanwhile");
        Files.writeString(file, "three");
        assertTrue(bearer.renew("Bearer two", seconds(10)));
        Files.delete(file);
        assertEquals("Bearer three", bearer.header(seconds(100)));
    }

    private static long seconds(long seconds) {
        return TimeUnit.SECONDS.toNanos(seconds);
    }

    @Test
    void reasonsAreCutBetweenCharacters() {
        assertEquals("aö", Onced.head("aöö", 4));
        assertEquals("short", Onced.head("short", 1_024));
    }

    @Test
    void aLongOwnerKeepsItsProcessId() {
        assertEquals("deploy@web-3:4711", Owner.of("deploy@web-3", 4711));
        String cut = Owner.of("\n" + "é".repeat(100), 4711);
        assertEquals("é".repeat(59) + ":4711", cut);
    }
}
