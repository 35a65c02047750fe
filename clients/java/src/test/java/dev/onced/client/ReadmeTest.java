package dev.onced.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.StringWriter;
import java.lang.reflect.InvocationTargetException;
import java.net.URL;
import java.net.URLClassLoader;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import javax.tools.ToolProvider;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.io.TempDir;

/** The first example of the README is what it says: it compiles, and charges once. */
@Timeout(60)
class ReadmeTest {
    @TempDir
    Path dir;

    @Test
    void theExampleWorks() throws Exception {
        String readme = Files.readString(Path.of(System.getProperty("onced.root"), "clients/java/README.md"));
        Matcher example = Pattern.compile("```java\n(.*?)```", Pattern.DOTALL).matcher(readme);
        assertTrue(example.find(), "the README has an example");
        try (TestServer server = TestServer.start()) {
            String body = example.group(1).replace("10.0.0.1:7411,10.0.0.2:7411", server.address());
            assertTrue(body.contains(server.address()), "the example names servers");
            assertEquals(5, example.group(1).strip().lines().count());
            Class<?> compiled = compile("""
                    import dev.onced.client.*;

                    public class Example {
                        public record Receipt(long token) {}

                        public static int charged;

                        static Receipt charge(long token) {
                            charged++;
                            return new Receipt(token);
                        }

                        public static void example() {
                            %s
                        }
                    }
                    """.formatted(body));
            for (int i = 0; i < 2; i++) {
                try {
                    compiled.getMethod("example").invoke(null);
                } catch (InvocationTargetException thrown) {
                    throw new AssertionError(thrown.getCause());
                }
            }
            assertEquals(1, compiled.getField("charged").get(null));
        }
    }

    private Class<?> compile(String source) throws Exception {
        Path file = Files.writeString(dir.resolve("Example.java"), source);
        var compiler = ToolProvider.getSystemJavaCompiler();
        var told = new StringWriter();
        try (var files = compiler.getStandardFileManager(null, null, null)) {
            List<String> options = List.of("-d", dir.toString(), "-cp", System.getProperty("java.class.path"));
            var task = compiler.getTask(told, files, null, options, null, files.getJavaFileObjects(file));
            assertTrue(task.call(), told::toString);
        }
        return new URLClassLoader(new URL[] {dir.toUri().toURL()}).loadClass("Example");
    }
}
