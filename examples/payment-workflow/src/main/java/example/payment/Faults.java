package example.payment;

import java.util.concurrent.atomic.AtomicBoolean;

/** Where a process dies or is paused, for the story. Leave it out of what you copy. */
final class Faults {
    private static final String FAULT = System.getenv().getOrDefault("FAULT", "");
    private static final AtomicBoolean DONE = new AtomicBoolean();

    private Faults() {}

    /** Marks a point of the code. With FAULT=POINT:SIGNAL the process sends itself that signal the first time it gets there. */
    static void reach(String point) {
        if (!FAULT.startsWith(point + ":") || DONE.getAndSet(true)) {
            return;
        }
        String signal = FAULT.substring(point.length() + 1);
        Log.say(signal + " " + point);
        try {
            new ProcessBuilder("kill", "-" + signal, Long.toString(ProcessHandle.current().pid())).start().waitFor();
        } catch (Exception impossible) {
            throw new IllegalStateException(impossible);
        }
    }
}
