"""The one place that reads time.

A holder counts its lock on this clock, so it goes on while the machine is suspended: a holder that slept must not think
that its lock still lives.
"""

import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta

Clock = Callable[[], float]
"""Seconds since some start of its own. Only differences mean anything."""

Seconds = float | timedelta
"""A time span: a number of seconds, or a `timedelta`."""


def seconds(span: Seconds) -> float:
    """The number of seconds in a span."""
    return span.total_seconds() if isinstance(span, timedelta) else float(span)


class LargerElapsed:
    """The larger of monotonic and wall time elapsed since it was made, for systems whose monotonic clock stops."""

    def __init__(self, monotonic: Clock = time.monotonic, wall: Clock = time.time) -> None:
        self._clocks = (monotonic, wall)
        self._starts = (monotonic(), wall())
        self._latest = 0.0
        self._mutex = threading.Lock()

    def __call__(self) -> float:
        elapsed = max(clock() - start for clock, start in zip(self._clocks, self._starts, strict=True))
        # Wall time may be set back; a clock that goes backward would lengthen locks.
        latest = max(self._latest, elapsed)
        # Whoever has it keeps a time as good as this one; or had it at a fork, and keeps it for ever.
        if self._mutex.acquire(blocking=False):
            self._latest = latest = max(self._latest, latest)
            self._mutex.release()
        return latest


def system_clock() -> Clock:
    """`CLOCK_BOOTTIME` where there is one."""
    if sys.platform == "linux":
        return lambda: time.clock_gettime(time.CLOCK_BOOTTIME)
    else:  # noqa: RET505 - so that mypy knows the platform
        return LargerElapsed()
