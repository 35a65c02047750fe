package dev.onced.client;

import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.ExecutionException;

/** Waiting for futures, without their wrappings. */
final class Futures {
    private Futures() {}

    /** What a future of this library ended with. */
    static Throwable unwrapped(Throwable error) {
        Throwable cause = error;
        while ((cause instanceof CompletionException || cause instanceof ExecutionException)
                && cause.getCause() != null) {
            cause = cause.getCause();
        }
        return cause;
    }

    /** The same to throw: whatever ends a future of this library is unchecked. */
    static RuntimeException unchecked(Throwable error) {
        Throwable cause = unwrapped(error);
        if (cause instanceof Error fault) {
            throw fault;
        }
        return cause instanceof RuntimeException unchecked ? unchecked : new CompletionException(cause);
    }

    /** Waits, and ends when it is interrupted. */
    static <T> T await(CompletableFuture<T> future) throws InterruptedException {
        try {
            return future.get();
        } catch (ExecutionException failed) {
            throw unchecked(failed);
        }
    }

    /** Waits to the end; an interrupt is kept for later. */
    static <T> T awaitToTheEnd(CompletableFuture<T> future) {
        boolean interrupted = false;
        try {
            while (true) {
                try {
                    return await(future);
                } catch (InterruptedException later) {
                    interrupted = true;
                }
            }
        } finally {
            if (interrupted) {
                Thread.currentThread().interrupt();
            }
        }
    }
}
