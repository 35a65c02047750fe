package example.payment;

/** What processes say, a line at a time. */
final class Log {
    private Log() {}

    static synchronized void say(String line) {
        System.out.println(line);
        System.out.flush();
    }
}
