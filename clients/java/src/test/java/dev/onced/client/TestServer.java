package dev.onced.client;

import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.TimeUnit;

/** A real server on a port of its own, with its records in memory. Its program is what ONCED_BINARY names. */
public final class TestServer implements AutoCloseable {
    private final Process process;
    private final String address;

    private TestServer(Process process, String address) {
        this.process = process;
        this.address = address;
    }

    public static TestServer start(String... more) {
        return startAt("127.0.0.1:0", more);
    }

    public static TestServer startAt(String listen, String... more) {
        String binary = System.getenv("ONCED_BINARY");
        if (binary == null || binary.isEmpty()) {
            throw new IllegalStateException("ONCED_BINARY is to be the path of the server");
        }
        List<String> command = new ArrayList<>(List.of(
                binary, "serve", "--listen", listen, "--admin-listen", "off", "--store", "memory:"));
        command.addAll(List.of(more));
        try {
            Path log = Files.createTempFile("onced-", ".log");
            Process process = new ProcessBuilder(command).redirectError(log.toFile()).start();
            var out = new BufferedReader(new InputStreamReader(process.getInputStream(), StandardCharsets.UTF_8));
            String first = out.readLine();
            if (first == null || !first.startsWith("listening on ")) {
                process.destroyForcibly().onExit().join();
                throw new IllegalStateException("the server did not start: " + Files.readString(log));
            }
            log.toFile().deleteOnExit();
            return new TestServer(process, first.substring("listening on ".length()).strip());
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        }
    }

    public String address() {
        return address;
    }

    public Onced connect() {
        return Onced.connect(address);
    }

    /** As kill -9 does. */
    public void kill() {
        process.destroyForcibly();
        try {
            if (!process.waitFor(30, TimeUnit.SECONDS)) {
                throw new IllegalStateException("the server does not end");
            }
        } catch (InterruptedException interrupted) {
            throw new IllegalStateException(interrupted);
        }
    }

    @Override
    public void close() {
        kill();
    }
}
