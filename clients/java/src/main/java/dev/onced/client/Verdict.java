package dev.onced.client;

/** What a handler of a server says of its own answer, which outranks the rules of the glue around it. */
public enum Verdict {
    /** It is the answer of all repetitions. */
    STORE,
    /** The key is free again: the handler had no effect, or is safe to repeat. */
    RETRY,
    /** The key is in doubt: nobody runs it until an operator has resolved it. */
    IN_DOUBT
}
