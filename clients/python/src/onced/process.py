"""The process that a client belongs to."""

from __future__ import annotations

import os

from onced.errors import SetupError


class Home:
    """The process that used a client first.

    A fork takes along neither gRPC's threads nor those that renew, and a lock that another thread held stays locked for
    ever. So a process that was forked after that touches nothing of the client: it neither calls nor ends anything.
    """

    def __init__(self) -> None:
        self._process: int | None = None

    @property
    def is_left(self) -> bool:
        """Whether this process was forked after the first use."""
        return self._process not in (None, os.getpid())

    def check(self) -> None:
        """Takes note of the first use; raises in a process that was forked after it."""
        if self.is_left:
            raise SetupError(
                "this client was used before its process was forked: make one after the fork, or use it only after"
            )
        self._process = os.getpid()
