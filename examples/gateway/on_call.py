"""What a person on call does about a key in doubt: looks at what the service has done for it, and says so to onced.

The service does not know keys, so the payment has to be found by what the request was: here by its reference, which
callers make the same as its key. Account and amount would not do: there may have been such a payment before. And the
service must be done with the request, or dead, when one looks: what is not there yet may otherwise still come.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
from contextlib import closing


def settle(key: str) -> str:
    """Settles a key that is in doubt. Tells what was found."""
    records = [json.loads(line) for line in onced("list", "--state", "in-doubt", "--json").splitlines()]
    token = next(record["fencing_token"] for record in records if record["key"] == key)
    with closing(sqlite3.connect(os.environ["PAYMENTS_FILE"])) as accounts:
        found = accounts.execute("SELECT payment, account, amount FROM payments WHERE reference = ?", [key]).fetchall()
    if len(found) > 1:
        raise SystemExit(f"{len(found)} payments have the reference {key}: which of them is meant is not known here")
    if not found:
        onced("resolve", "--key", key, "--token", str(token), "--retry")
        return "nothing was debited, so it may run again (onced resolve --retry)"
    # What the service would have answered: every duplicate gets it from now on.
    [(payment, account, amount)] = found
    response = json.dumps({"payment": payment, "account": account, "amount": amount})
    answer = ["--response", response, "--content-type", "application/json", "--metadata", "http.status=201"]
    onced("resolve", "--key", key, "--token", str(token), *answer)
    return f"payment {payment} is there, so that is the answer (onced resolve --response)"


def onced(command: str, *flags: str) -> str:
    """Runs onced, which finds its server by ONCED_SERVER."""
    program = [os.environ.get("ONCED", "onced"), command, "--namespace", "payments", *flags]
    return subprocess.run(program, check=True, capture_output=True, text=True).stdout
