package example.story;

import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.OutputStream;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;

/** One process: a host of the service, or a runner. */
final class Host {
    /** Long enough for a machine under load: nothing takes so long unless it is broken. */
    static final long LIMIT = TimeUnit.SECONDS.toNanos(40);

    private static final List<Host> ALL = new ArrayList<>();

    private final Process process;
    /** Guarded by itself. */
    private final List<String> lines = new ArrayList<>();

    private Host(Process process) {
        this.process = process;
    }

    /** Starts a program of this class path. */
    static Host start(Map<String, String> environment, Class<?> program, String... arguments) throws IOException {
        var command = new ArrayList<>(List.of(ProcessHandle.current().info().command().orElse("java")));
        command.addAll(List.of("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx128m"));
        command.addAll(List.of("-cp", System.getProperty("java.class.path"), program.getName()));
        command.addAll(List.of(arguments));
        var builder = new ProcessBuilder(command).redirectErrorStream(true);
        builder.environment().putAll(environment);
        var host = new Host(builder.start());
        synchronized (ALL) {
            ALL.add(host);
        }
        var reader = new Thread(host::read);
        reader.setDaemon(true);
        reader.start();
        return host;
    }

    /** Ends all that were started, those that are paused too. */
    static void endAll() {
        synchronized (ALL) {
            ALL.forEach(host -> host.process.destroyForcibly());
            ALL.clear();
        }
    }

    /** Where it listens, once it does. */
    String url() throws InterruptedException {
        return "http://127.0.0.1:" + says("listening on ").substring("listening on ".length());
    }

    /** The first line that begins so, once it is said. */
    String says(String start) throws InterruptedException {
        return says(start, 1);
    }

    /** The line that begins so for the {@code count}th time, once it is said. */
    String says(String start, int count) throws InterruptedException {
        long end = System.nanoTime() + LIMIT;
        synchronized (lines) {
            while (true) {
                List<String> said = said(start);
                if (said.size() >= count) {
                    return said.get(count - 1);
                }
                long left = TimeUnit.NANOSECONDS.toMillis(end - System.nanoTime());
                if (left <= 0) {
                    throw new IllegalStateException("nobody said \"" + start + "\" but:\n" + String.join("\n", lines));
                }
                lines.wait(left);
            }
        }
    }

    /** All lines that begin so. */
    List<String> said(String start) {
        synchronized (lines) {
            return lines.stream().filter(line -> line.startsWith(start)).toList();
        }
    }

    /** Writes a line to its standard input. */
    void tell(String line) throws IOException {
        OutputStream in = process.getOutputStream();
        in.write((line + "\n").getBytes(StandardCharsets.UTF_8));
        in.flush();
    }

    void resume() throws IOException, InterruptedException {
        new ProcessBuilder("kill", "-CONT", Long.toString(process.pid())).start().waitFor();
    }

    private void read() {
        try (var out = new BufferedReader(new InputStreamReader(process.getInputStream(), StandardCharsets.UTF_8))) {
            for (String line; (line = out.readLine()) != null; ) {
                note(line);
            }
            note("ended " + process.waitFor());
        } catch (IOException | InterruptedException ended) {
            note("ended");
        }
    }

    private void note(String line) {
        synchronized (lines) {
            lines.add(line);
            lines.notifyAll();
        }
    }
}
