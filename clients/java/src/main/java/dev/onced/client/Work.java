package dev.onced.client;

/**
 * What is to be done once for a key.
 *
 * @param <T> what it returns
 */
@FunctionalInterface
public interface Work<T> {
    /**
     * Does it. It is interrupted when the claim is lost, unless {@link Once#interruptWhenLost} says otherwise.
     *
     * @param claim the right to do it
     * @return what every duplicate gets; may be null where the codec knows it
     * @throws Exception if it failed. A {@link Failure} says what becomes of the key, any other leaves that to
     *     {@link Once#onFailure}
     */
    T run(Claim claim) throws Exception;
}
