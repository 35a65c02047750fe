"""One instance of naive.py or function.py, as a platform starts them: python instance.py MODULE [MOMENT WHAT]

With a moment something happens when an order comes to `take_from_stock`: right before it (before), right before its
commit (inside), or right after it (after). The instance sends itself a signal (SIGKILL, SIGSTOP), or is held until a
line comes to its standard input (hold).
"""

from __future__ import annotations

import importlib
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import database


def strike(module: Any, moment: str, what: str) -> None:
    """Has that happen at that moment."""
    work, transaction = module.take_from_stock, database.transaction

    def happen() -> None:
        if what == "hold":
            print("held here", flush=True)
            sys.stdin.readline()
        else:
            # To this very thread, which goes no further. Another one might stop the process a moment later.
            signal.pthread_kill(threading.get_ident(), signal.Signals[what])

    @contextmanager
    def struck_transaction() -> Iterator[database.Execute]:
        with transaction() as execute:
            yield execute
            happen()

    def struck(*arguments: Any) -> Any:
        if moment == "before":
            happen()
        if moment == "inside":
            database.transaction = struck_transaction
        answer = work(*arguments)
        if moment == "after":
            happen()
        return answer

    module.take_from_stock = struck


def main() -> None:
    """Serves on a free port, which is printed."""
    module = importlib.import_module(sys.argv[1])
    if len(sys.argv) > 2:
        strike(module, *sys.argv[2:])
    module.app.run(host="127.0.0.1", port=0)


main()
