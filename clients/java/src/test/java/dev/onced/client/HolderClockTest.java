package dev.onced.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

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
    void wallTimeThatIsSetBackNeitherTurnsTheClockBackNorStopsIt() {
        wall.addAndGet(100);
        assertEquals(100, clock.nanos());
        wall.addAndGet(-1_000);
        assertEquals(100, clock.nanos());
        monotonic.addAndGet(10);
        assertEquals(110, clock.nanos());
        monotonic.addAndGet(10);
        wall.addAndGet(10);
        assertEquals(120, clock.nanos());
    }

    @Test
    void manyReadingsAddNothingUp() {
        HolderClock system = HolderClock.system();
        long from = System.nanoTime();
        for (int i = 0; i < 100_000; i++) {
            system.nanos();
        }
        long shown = system.nanos();
        long passed = System.nanoTime() - from;
        assertTrue(shown < 2 * passed, () -> shown + " in " + passed);
    }
}
