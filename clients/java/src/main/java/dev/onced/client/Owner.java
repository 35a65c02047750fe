package dev.onced.client;

import java.io.IOException;
import java.net.InetAddress;
import java.net.UnknownHostException;
import java.nio.file.Files;
import java.nio.file.Path;

/** Who asks, when nobody says. */
final class Owner {
    private static final int LONGEST = 64;

    private Owner() {}

    /** User, host and process id, such as {@code deploy@web-3:4711}. */
    static String standard() {
        return of(System.getProperty("user.name", "") + "@" + host(), ProcessHandle.current().pid());
    }

    /** A long name is cut, and the process id is not: it tells the processes of a host apart. */
    static String of(String where, long pid) {
        String process = ":" + pid;
        return where.codePoints()
                .filter(c -> !Character.isISOControl(c))
                .limit(LONGEST - process.length())
                .collect(StringBuilder::new, StringBuilder::appendCodePoint, StringBuilder::append)
                .append(process)
                .toString();
    }

    private static String host() {
        try {
            // What Java has asks name servers, which may take long.
            return Files.readString(Path.of("/proc/sys/kernel/hostname")).strip();
        } catch (IOException elsewhere) {
            try {
                return InetAddress.getLocalHost().getHostName();
            } catch (UnknownHostException nameless) {
                return "localhost";
            }
        }
    }
}
