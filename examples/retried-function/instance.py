"""One instance of naive.py or function.py, as a platform starts them: python instance.py MODULE [before|after SIGNAL]

With a signal it kills or stops itself when the first order comes to `take_from_stock`: right before, or right after.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from typing import Any


def strike(module: Any, moment: str, name: str) -> None:
    """Has the process send itself a signal at that moment."""
    work = module.take_from_stock

    def struck(*arguments: Any) -> Any:
        if moment == "before":
            os.kill(os.getpid(), signal.Signals[name])
        answer = work(*arguments)
        if moment == "after":
            os.kill(os.getpid(), signal.Signals[name])
        return answer

    module.take_from_stock = struck


def main() -> None:
    """Serves on a free port, which is printed."""
    module = importlib.import_module(sys.argv[1])
    if len(sys.argv) > 2:
        strike(module, *sys.argv[2:])
    module.app.run(host="127.0.0.1", port=0)


main()
