"""Who asks, when nobody says."""

import getpass
import os
import socket


def default_owner() -> str:
    """User, host and process id of this process, such as `deploy@web-3:4711`."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # A user id without a name, as in many containers.
        user = str(os.getuid()) if hasattr(os, "getuid") else "unknown"
    # The process id tells owners apart, so it is the last to be cut.
    end = f":{os.getpid()}"
    place = "".join(char for char in f"{user}@{socket.gethostname()}" if char.isprintable())
    return place[: 64 - len(end)] + end
