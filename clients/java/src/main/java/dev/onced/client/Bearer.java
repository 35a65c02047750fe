package dev.onced.client;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.concurrent.TimeUnit;

/** The token to send, read again from its file. */
final class Bearer {
    /** How old a token that was read from a file may be when it is sent. */
    private static final long TOKEN_AGE = TimeUnit.SECONDS.toNanos(5);

    private static final System.Logger LOG = System.getLogger(Bearer.class.getName());

    private final Path file;
    private String header;
    private long read;

    /** None if there is no token. */
    static Bearer of(Access access, long now) {
        return access.hasToken() ? new Bearer(access, now) : null;
    }

    private Bearer(Access access, long now) {
        this.file = access.tokenFile();
        this.header = file == null ? header(access.token(), "the token") : read(file);
        this.read = now;
    }

    /** What to send. The file is small and local: reading it holds nobody up. */
    synchronized String header(long now) {
        if (now - read >= TOKEN_AGE) {
            readAgain(now);
        }
        return header;
    }

    /** After {@code sent} was refused: whether there is another token to try. */
    synchronized boolean renew(String sent, long now) {
        readAgain(now);
        return !header.equals(sent);
    }

    private void readAgain(long now) {
        if (file == null) {
            return;
        }
        read = now;
        try {
            header = read(file);
        } catch (SetUpException unreadable) {
            LOG.log(System.Logger.Level.WARNING, "the token stays as it was: {0}", unreadable.getMessage());
        }
    }

    private static String read(Path file) {
        try {
            return header(Files.readString(file).strip(), file.toString());
        } catch (IOException error) {
            throw Access.cannotRead(file, error);
        }
    }

    private static String header(String token, String what) {
        if (token.isEmpty()) {
            throw new SetUpException(what + " is empty, and is to be a token");
        }
        if (!token.chars().allMatch(c -> c >= 0x20 && c < 0x7f)) {
            throw new SetUpException(what + " is to be a token: printable text on one line");
        }
        return "Bearer " + token;
    }
}
