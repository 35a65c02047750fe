"""A payment service over HTTP that knows nothing of idempotency: each POST /payments that it carries out is a debit.

    POST /payments {"reference": "9b1d…", "account": "alpha", "amount": 10}
    GET /accounts/alpha

The reference is the caller's. It is kept with the payment, and payments may share one. The service keeps accounts in
the file of SQLite that PAYMENTS_FILE names, asks the risk service at RISK_URL before a debit, and tells the books at
BOOKS_URL after it. It listens on PORT, or on a free one, which it prints.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import urllib.request
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, dict[str, object]]

SCHEMA = """
CREATE TABLE IF NOT EXISTS accounts (account TEXT PRIMARY KEY, balance INTEGER NOT NULL CHECK (balance >= 0));
CREATE TABLE IF NOT EXISTS payments (
    payment INTEGER PRIMARY KEY, reference TEXT NOT NULL, account TEXT NOT NULL, amount INTEGER NOT NULL
);
"""


def connect() -> sqlite3.Connection:
    """The accounts, for one thread."""
    return sqlite3.connect(os.environ["PAYMENTS_FILE"], timeout=30, isolation_level=None)


def pay(body: bytes) -> Answer:
    """Debits an account."""
    try:
        payment = json.loads(body)
        reference, account, amount = payment["reference"], payment["account"], payment["amount"]
    except (ValueError, TypeError):
        return 400, {"error": "the body is not an object of JSON"}
    except KeyError as missing:
        return 400, {"error": f"{missing.args[0]}: is missing"}
    if not isinstance(reference, str):
        return 400, {"error": "reference: is a string"}
    if not isinstance(account, str):
        return 400, {"error": "account: is a string"}
    if type(amount) is not int or not 1 <= amount <= 1_000_000:
        return 400, {"error": "amount: is a whole number from 1 to 1000000"}
    try:
        call(os.environ["RISK_URL"], account)
    except OSError:
        return 503, {"error": "the risk service is away"}
    status, answer = debit(reference, account, amount)
    if status == 201:
        try:
            call(os.environ["BOOKS_URL"], account)
        except OSError as error:
            print(f"the books will be told of payment {answer['payment']} later: {error}", file=sys.stderr)
    return status, answer


def debit(reference: str, account: str, amount: int) -> Answer:
    """Takes an amount from an account, in one transaction."""
    with closing(connect()) as accounts, accounts:
        accounts.execute("BEGIN IMMEDIATE")
        found = accounts.execute("SELECT balance FROM accounts WHERE account = ?", [account]).fetchone()
        if found is None:
            return 404, {"error": f"account: there is no {account}"}
        if found[0] < amount:
            return 402, {"error": "insufficient funds"}
        accounts.execute("UPDATE accounts SET balance = balance - ? WHERE account = ?", [amount, account])
        payment = accounts.execute(
            "INSERT INTO payments (reference, account, amount) VALUES (?, ?, ?)", [reference, account, amount]
        )
        return 201, {"payment": payment.lastrowid, "account": account, "amount": amount}


def balance(account: str) -> Answer:
    """What is on an account."""
    with closing(connect()) as accounts:
        found = accounts.execute("SELECT balance FROM accounts WHERE account = ?", [account]).fetchone()
    return (200, {"account": account, "balance": found[0]}) if found else (404, {"error": f"there is no {account}"})


def call(url: str, account: str) -> None:
    """Calls another service about an account."""
    urllib.request.urlopen(url, data=account.encode(), timeout=10).close()


class Handler(BaseHTTPRequestHandler):
    """One request."""

    def do_POST(self) -> None:
        """Pays."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer(*(pay(body) if self.path == "/payments" else (404, {"error": "there is only /payments"})))

    def do_GET(self) -> None:
        """Shows an account."""
        where, _, account = self.path[1:].partition("/")
        self.answer(*(balance(account) if where == "accounts" else (404, {"error": "there is only /accounts/NAME"})))

    def answer(self, status: int, answer: dict[str, object]) -> None:
        """Answers in JSON."""
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Logs nothing of requests."""


def main() -> None:
    """Serves until it is ended."""
    with closing(connect()) as accounts:
        accounts.executescript(SCHEMA)
    server = ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "0"))), Handler)
    print(f"listening on http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
