package example.story;

import java.io.IOException;
import java.io.InputStream;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.net.URI;
import java.util.concurrent.atomic.AtomicBoolean;

/** Stands before a host, and loses its first reply: the host has answered, and nobody hears it. */
final class LosesReply {
    private final int behind;
    private final AtomicBoolean lost = new AtomicBoolean();

    private LosesReply(int behind) {
        this.behind = behind;
    }

    /** Where to reach it. */
    static String before(String url) throws IOException {
        var proxy = new LosesReply(URI.create(url).getPort());
        var listener = new ServerSocket(0, 50, InetAddress.getLoopbackAddress());
        inBackground(() -> {
            while (true) {
                Socket caller = listener.accept();
                inBackground(() -> proxy.serve(caller));
            }
        });
        return "http://127.0.0.1:" + listener.getLocalPort();
    }

    private void serve(Socket caller) throws IOException {
        try (caller; var host = new Socket(InetAddress.getLoopbackAddress(), behind)) {
            inBackground(() -> caller.getInputStream().transferTo(host.getOutputStream()));
            InputStream replies = host.getInputStream();
            byte[] buffer = new byte[8_192];
            for (int size; (size = replies.read(buffer)) > 0; ) {
                if (!lost.getAndSet(true)) {
                    // Closed so, the connection is reset.
                    caller.setSoLinger(true, 0);
                    return;
                }
                caller.getOutputStream().write(buffer, 0, size);
            }
        }
    }

    private interface Task {
        void run() throws IOException;
    }

    private static void inBackground(Task task) {
        var thread = new Thread(() -> {
            try {
                task.run();
            } catch (IOException closed) {
                // As the story wants it.
            }
        });
        thread.setDaemon(true);
        thread.start();
    }
}
