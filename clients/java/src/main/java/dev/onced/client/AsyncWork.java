package dev.onced.client;

import java.util.concurrent.CompletionStage;

/**
 * What is to be done once for a key, without a thread that waits for it.
 *
 * @param <T> what it returns
 */
@FunctionalInterface
public interface AsyncWork<T> {
    /**
     * Starts it. The stage must not end before all that it stands for has ended: the claim is kept for as long, and
     * is given back, or the outcome stored, from then on. A stage that was cancelled does not say whether what
     * it stood for has stopped, so the key is then in doubt, whatever the rule for failures is.
     *
     * @param claim the right to do it; {@link Claim#whenLost} is the signal to stop
     * @return what every duplicate gets, once it is there
     * @throws Exception if it failed at once; see {@link Work#run}
     */
    CompletionStage<T> start(Claim claim) throws Exception;
}
