"""What a person on call does about a key in doubt: looks at what the service has done for it, and says so to onced.

The service does not know keys, so the payment has to be found by what the request was: here by its account. And the
service must be done with it, or dead, when one looks: what is not there yet may otherwise still come.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
from contextlib import closing


def settle(key: str, account: str) -> str:
    """Settles a key that is in doubt. Tells what was found."""
    records = [json.loads(line) for line in onced("list", "--state", "in-doubt", "--json").splitlines()]
    token = next(record["fencing_token"] for record in records if record["key"] == key)
    with closing(sqlite3.connect(os.environ["PAYMENTS_FILE"])) as accounts:
        found = accounts.execute("SELECT payment, amount FROM payments WHERE account = ?", [account]).fetchone()
    if found is None:
        onced("resolve", "--key", key, "--token", str(token), "--retry")
        return "nothing was debited, so it may run again (onced resolve --retry)"
    # What the service would have answered: every duplicate gets it from now on.
    response = json.dumps({"payment": found[0], "account": account, "amount": found[1]})
    answer = ["--response", response, "--content-type", "application/json", "--metadata", "http.status=201"]
    onced("resolve", "--key", key, "--token", str(token), *answer)
    return f"payment {found[0]} is there, so that is the answer (onced resolve --response)"


def onced(command: str, *flags: str) -> str:
    """Runs onced, which finds its server by ONCED_SERVER."""
    program = [os.environ.get("ONCED", "onced"), command, "--namespace", "payments", *flags]
    return subprocess.run(program, check=True, capture_output=True, text=True).stdout
