package dev.onced.client;

/** What becomes of the key if this process dies while the work runs. */
public enum OnLapse {
    /** The next caller gets a new claim. */
    TAKE_OVER(dev.onced.v1.OnLapse.ON_LAPSE_TAKE_OVER),
    /** The key is in doubt: nobody runs it until an operator has resolved it. */
    HOLD(dev.onced.v1.OnLapse.ON_LAPSE_HOLD);

    final dev.onced.v1.OnLapse wire;

    OnLapse(dev.onced.v1.OnLapse wire) {
        this.wire = wire;
    }
}
