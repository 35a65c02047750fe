"""Work of asyncio that is done in a thread."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from typing import ParamSpec, TypeVar

R = TypeVar("R")
P = ParamSpec("P")


async def to_thread(function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Runs a function in a thread, and waits for its end, even if it is cancelled meanwhile.

    A thread cannot be stopped. `asyncio.to_thread` ends at once when it is cancelled, and what it has begun goes on:
    the key would be free, or taken over, while it is at it. This one returns what the function returns.
    """
    call = functools.partial(copy_context().run, function, *args, **kwargs)
    running = asyncio.get_running_loop().run_in_executor(None, call)
    while not running.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait({running})
    return running.result()
