"""What the story is played with: the service and its proxy, the services around it, and a caller that loses replies."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
import uuid
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CALLER_WAITS = 30.0
"""How long a caller waits for an answer, in seconds."""
INITIAL_BALANCE = 100
"""Of each account; every payment is from an account of its own, so that its balance tells what was debited."""


@dataclass(frozen=True)
class Reply:
    """What a request was answered."""

    status: int
    """0: nothing, since the connection broke."""
    text: str
    replayed: bool = False

    def __str__(self) -> str:
        return f"{self.status or ''} {self.text}{', replayed' if self.replayed else ''}".strip()


class Process:
    """A server of its own, that says where it listens."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str]) -> None:
        self._output = Path(os.environ["EXAMPLE_DIR"]) / f"{name}-{time.monotonic_ns()}.log"
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                command, cwd=HERE, env=os.environ | environment, stdout=output, stderr=subprocess.STDOUT
            )
        self.url = self._wait_for_url()

    def _wait_for_url(self) -> str:
        for _ in range(600):
            found = re.search(r"^listening on (?:http://)?(\S+)$", self._output.read_text(), re.MULTILINE)
            if found:
                return f"http://{found[1]}"
            if self._process.poll() is not None:
                break
            time.sleep(0.02)
        raise SystemExit(f"a server did not start:\n{self._output.read_text()}")

    def kill(self) -> None:
        """Kills it, by SIGKILL."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()


class Gate:
    """A moment at which the service is held, until the gate is opened."""

    def __init__(self) -> None:
        self._reached = threading.Event()
        self._opened = threading.Event()

    def pass_through(self) -> None:
        """The service comes to it."""
        self._reached.set()
        self._opened.wait()

    def wait_reached(self) -> None:
        """Waits until the service has come to it."""
        assert self._reached.wait(CALLER_WAITS), "the service did not come to where it was to be held"

    def open(self) -> None:
        """Lets the service go on, then and later."""
        self._opened.set()


class Around(ThreadingHTTPServer):
    """The services around: the risk service, and the books. By them the story knows where a payment stands."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), AroundHandler)
        self.risk_is_away = False
        self.gates: dict[tuple[str, str], Gate] = {}
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def gate(self, place: str, account: str) -> Gate:
        """Holds the payment of an account: at "/risk", before its debit, or at "/books", after it."""
        return self.gates.setdefault((place, account), Gate())

    def handle_error(self, *_: object) -> None:
        """The service was killed while it waited for this."""


class AroundHandler(BaseHTTPRequestHandler):
    """A request of the service."""

    server: Around

    def do_POST(self) -> None:
        """Consents, or takes note."""
        account = self.rfile.read(int(self.headers["Content-Length"])).decode()
        gate = self.server.gates.get((self.path, account))
        if gate:
            gate.pass_through()
        self.send_response(503 if self.path == "/risk" and self.server.risk_is_away else 204)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Logs nothing."""


@dataclass
class Asked:
    """A payment that was asked for, and what was heard of it."""

    key: str = field(default_factory=lambda: str(uuid.uuid4()))
    """The same in each repetition; and the payment's reference."""
    replies: list[Reply] = field(default_factory=list)
    debits: int = 0
    refused_first: bool = False
    in_doubt: bool = False


class Play:
    """The requests of the story, to the service itself or through the proxy."""

    def __init__(self, proxied: bool) -> None:
        self.proxied = proxied
        self.asked: dict[str, Asked] = {}
        self.around = Around()
        self._pool = ThreadPoolExecutor(8)
        os.environ["PAYMENTS_FILE"] = str(Path(os.environ["EXAMPLE_DIR"]) / f"payments-{proxied}.sqlite")
        self.service = self._start_service("0")
        self.proxy = self._start_proxy() if proxied else None

    def _start_service(self, port: str) -> Process:
        around = f"http://127.0.0.1:{self.around.server_port}"
        where = {"RISK_URL": f"{around}/risk", "BOOKS_URL": f"{around}/books", "PORT": port}
        return Process("service", [sys.executable, "-B", "service.py"], where)

    def _start_proxy(self) -> Process:
        return Process("proxy", ["./proxy", "--upstream", self.service.url], {"LOCK_TTL": "2s"})

    def restart_service(self) -> None:
        """Starts the service again where it was, as a supervisor does."""
        self.service = self._start_service(self.service.url.rpartition(":")[2])

    def restart_proxy(self) -> None:
        """Starts a proxy again, as a supervisor does."""
        self.proxy = self._start_proxy()

    def close(self) -> None:
        """Ends all of it."""
        for process in filter(None, (self.service, self.proxy)):
            process.kill()
        for gate in self.around.gates.values():
            gate.open()
        self._pool.shutdown()
        self.around.shutdown()
        self.around.server_close()

    def send(self, body: dict[str, object], key: str | None, hang_up: Gate | None = None) -> Reply:
        """Sends a request to pay, and hears the answer; or hangs up once the service is at a gate."""
        url = urllib.parse.urlsplit(self.proxy.url if self.proxy else self.service.url)
        headers = {"Content-Type": "application/json"} | ({"Idempotency-Key": key} if key else {})
        with closing(http.client.HTTPConnection(url.netloc, timeout=CALLER_WAITS)) as connection:
            try:
                connection.request("POST", "/payments", json.dumps(body), headers)
                if hang_up:
                    hang_up.wait_reached()
                    return Reply(0, "nothing")
                answer = connection.getresponse()
                replayed = answer.getheader("Idempotent-Replayed") == "true"
                return Reply(answer.status, text_of(json.loads(answer.read())), replayed)
            except ConnectionError:
                return Reply(0, "nothing")

    def pay(self, account: str, amount: int = 10, hang_up: Gate | None = None) -> Reply:
        """Pays from an account: the one payment that the story asks of it, again each time."""
        asked = self.asked.setdefault(account, Asked())
        reply = self.send({"reference": asked.key, "account": account, "amount": amount}, asked.key, hang_up)
        asked.replies.append(reply)
        return reply

    def pay_before(self, account: str) -> None:
        """Pays from an account, another payment than the one of the story."""
        key = str(uuid.uuid4())
        assert self.send({"reference": key, "account": account, "amount": 10}, key).status == 201

    def begin(self, account: str) -> Future[Reply]:
        """Pays, and does not wait for the answer."""
        return self._pool.submit(self.pay, account)

    def note_debits(self) -> None:
        """Notes how often each payment was debited, in the end."""
        with closing(accounts()) as ledger:
            for asked in self.asked.values():
                found = ledger.execute("SELECT count(*) FROM payments WHERE reference = ?", [asked.key]).fetchone()
                asked.debits = found[0]

    def open_account(self, account: str) -> None:
        """Opens an account, with something on it."""
        with closing(accounts()) as ledger, ledger:
            ledger.execute("INSERT INTO accounts (account, balance) VALUES (?, ?)", [account, INITIAL_BALANCE])

    def top_up(self, account: str, amount: int) -> None:
        """Brings money to an account."""
        with closing(accounts()) as ledger, ledger:
            ledger.execute("UPDATE accounts SET balance = balance + ? WHERE account = ?", [amount, account])


def accounts() -> sqlite3.Connection:
    """The accounts of the service."""
    return sqlite3.connect(os.environ["PAYMENTS_FILE"], timeout=30)


def wait_for_waiting(calls: int) -> bool:
    """Waits until so many calls wait in onced for somebody else's work. Whether that came to be."""
    for _ in range(500):
        with urllib.request.urlopen(f"{os.environ['ONCED_ADMIN']}/metrics", timeout=CALLER_WAITS) as answer:
            if f'onced_limit_used{{limit="max_waiting_calls"}} {calls}\n' in answer.read().decode():
                return True
        time.sleep(0.02)
    return False


def text_of(answer: dict[str, object]) -> str:
    """What an answer says, in short."""
    if "payment" in answer:
        return f"payment {answer['payment']}"
    return str(answer.get("code") or answer["error"])


def told(replies: list[Reply]) -> str:
    """Replies in words, those that are alike together."""
    counted = sorted(Counter(replies).items(), key=lambda pair: (pair[0].replayed, pair[0].text))
    return "; ".join(f"{reply} (x{n})" if n > 1 else str(reply) for reply, n in counted)
