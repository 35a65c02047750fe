package dev.onced.client;

import static org.junit.jupiter.api.Assertions.assertEquals;

import java.util.concurrent.atomic.AtomicLong;
import org.junit.jupiter.api.Test;

class HolderClockTest {
    private final AtomicLong monotonic = new AtomicLong(1_000);
    private final AtomicLong wall = new AtomicLong(5_000_000);
    private final HolderClock clock = HolderClock.larger(monotonic::get, wall::get);

    @Test
    void timeSuspendedCounts() {
        monotonic.addAndGet(10);
        wall.addAndGet(70);
        assertEquals(70, clock.nanos());
    }

    @Test
    void wallTimeThatIsSetBackNeverTurnsTheClockBack() {
        wall.addAndGet(100);
        assertEquals(100, clock.nanos());
        wall.addAndGet(-1_000);
        assertEquals(100, clock.nanos());
        monotonic.addAndGet(130);
        assertEquals(130, clock.nanos());
    }
}
