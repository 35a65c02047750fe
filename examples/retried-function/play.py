"""What the story is played with: instances of the function, a caller that delivers orders, and the database."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from typing_extensions import Self

import database

HERE = Path(__file__).parent
CALLER_WAITS = 30.0
"""How long a caller waits for the function, in seconds."""
LOCK_TTL = "2"
"""How soon the story sees a takeover, in seconds. Elsewhere it is longer, since live instances stall for as long."""
INITIAL_STOCK = 10
"""Of each product; every order is for a product of its own, so that its stock tells what the order took."""


@dataclass(frozen=True)
class Reply:
    """What a delivery was answered."""

    status: int
    """0: nothing, since the connection broke."""
    text: str

    def __str__(self) -> str:
        return f"{self.status} {self.text}" if self.status else self.text

    @property
    def settles(self) -> bool:
        """Whether the caller takes it for the answer, and does not deliver again."""
        return 200 <= self.status < 500


class Instance:
    """A process that serves the function."""

    def __init__(self, module: str, number: int, fault: tuple[str, ...]) -> None:
        self._log = Path(os.environ["EXAMPLE_DIR"]) / f"{module}-{number}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "instance.py", module, *fault],
                cwd=HERE,
                env=os.environ | {"LOCK_TTL": LOCK_TTL},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def url(self) -> str:
        """Where it listens, once it does."""
        return self._wait_for(r"Running on (http://\S+)")[1]

    def _wait_for(self, said: str) -> re.Match[str]:
        for _ in range(600):
            found = re.search(said, self._log.read_text())
            if found:
                return found
            if self._process.poll() is not None:
                break
            time.sleep(0.05)
        raise SystemExit(f"an instance did not say {said}:\n{self._log.read_text()}")

    def wait_held(self) -> None:
        """Waits until the instance holds an order."""
        self._wait_for("held here")

    def let_go(self) -> None:
        """Lets the order go on."""
        assert self._process.stdin
        self._process.stdin.write(b"\n")
        self._process.stdin.close()

    def wait_killed(self) -> None:
        """Waits until the instance has killed itself."""
        assert self._process.wait(timeout=CALLER_WAITS) == -signal.SIGKILL

    def wait_stopped(self) -> None:
        """Waits until the instance has stopped itself."""
        _, status = os.waitpid(self._process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), status

    def resume(self) -> None:
        """Lets a stopped instance go on."""
        self._process.send_signal(signal.SIGCONT)

    def has_logged(self, text: str) -> bool:
        """Whether its log has that."""
        return text in self._log.read_text()

    def end(self) -> None:
        """Ends the instance, whatever it does."""
        self._process.kill()
        self._process.wait()


@dataclass
class Placed:
    """An order, and what was heard of it."""

    replies: list[Reply] = field(default_factory=list)
    wanted: int = 1
    supplied: int = INITIAL_STOCK
    took: int = 0


class Play:
    """The deliveries of the story, to one of the two functions."""

    def __init__(self, module: str) -> None:
        reset_database()
        self.orders: dict[str, Placed] = {}
        self.mistaken: list[Reply] = []
        self.waited = 0
        self.fenced = False
        self.cut_off: list[Reply] = []
        self._pool = ThreadPoolExecutor(8)
        faults = {
            "a": (),
            "b": (),
            "holds before": ("before", "hold"),
            "dies before": ("before", "SIGKILL"),
            "dies after": ("after", "SIGKILL"),
            "stops before": ("before", "SIGSTOP"),
            "stops inside": ("inside", "SIGSTOP"),
        }
        self.instances = {name: Instance(module, number, fault) for number, (name, fault) in enumerate(faults.items())}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for instance in self.instances.values():
            instance.end()
        self._pool.shutdown()

    def deliver(self, order_id: str, instance: str, quantity: int = 1) -> Reply:
        """Delivers an order once."""
        return self.deliver_all(order_id, [instance], quantity)[0]

    def deliver_all(self, order_id: str, instances: list[str], quantity: int = 1) -> list[Reply]:
        """Delivers an order to each of the instances, all at once."""
        return [each.result() for each in [self.begin(order_id, instance, quantity) for instance in instances]]

    def begin(self, order_id: str, instance: str, quantity: int = 1) -> Future[Reply]:
        """Delivers an order, and does not wait for the answer."""
        placed = self.orders.setdefault(order_id, Placed())
        body = {"order_id": order_id, "product": product_of(order_id), "quantity": quantity}

        def send() -> Reply:
            reply = self.post(body, instance)
            placed.replies.append(reply)
            return reply

        return self._pool.submit(send)

    def post(self, body: dict[str, Any], instance: str) -> Reply:
        """Sends a request."""
        request = urllib.request.Request(
            f"{self.instances[instance].url()}/process_order",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=CALLER_WAITS) as answer:
                return Reply(answer.status, text_of(answer.read()))
        except urllib.error.HTTPError as error:
            return Reply(error.code, text_of(error.read()))
        except ConnectionError:
            return Reply(0, "no answer")

    def restock(self, order_id: str, number: int) -> None:
        """Brings so many more of the product of an order."""
        self.orders[order_id].supplied += number
        with database.transaction() as execute:
            execute("UPDATE stock SET available = available + %s WHERE product = %s", number, product_of(order_id))

    def close_books(self) -> None:
        """Notes what each order has taken from stock, in the end."""
        for order_id, placed in self.orders.items():
            placed.took = placed.supplied - available(order_id)


def see_who_waits(deliveries: list[Future[Reply]]) -> int:
    """Looks on until each of these deliveries waits in onced, or has its answer. How many wait."""
    for _ in range(600):
        with urllib.request.urlopen(f"{os.environ['ONCED_ADMIN']}/metrics", timeout=CALLER_WAITS) as answer:
            metrics = answer.read().decode()
        found = re.search(r'^onced_limit_used\{limit="max_waiting_calls"\} (\d+)$', metrics, re.MULTILINE)
        assert found, metrics
        waiting = int(found[1])
        if waiting + sum(delivery.done() for delivery in deliveries) == len(deliveries):
            return waiting
        time.sleep(0.05)
    raise SystemExit("deliveries neither wait nor are answered")


def text_of(body: bytes) -> str:
    """The result or the error in an answer."""
    fields = json.loads(body)
    text = fields.get("result") or fields["error"]
    assert isinstance(text, str)
    return text


def product_of(order_id: str) -> str:
    """The product that an order is for."""
    return order_id.replace("order", "book")


def reset_database() -> None:
    """Empties the database."""
    with database.transaction() as execute:
        for table in ("stock", "orders", "seen"):
            execute("DROP TABLE IF EXISTS " + table)
        for statement in (HERE / "schema.sql").read_text().split(";")[:-1]:
            execute(statement)
        for number in range(1, 7):
            execute("INSERT INTO stock (product, available) VALUES (%s, %s)", f"book-{number}", INITIAL_STOCK)


def available(order_id: str) -> int:
    """What is left of the product of an order."""
    with database.transaction() as execute:
        return int(execute("SELECT available FROM stock WHERE product = %s", product_of(order_id))[0][0])


def told(replies: list[Reply]) -> str:
    """Replies in words, those that are alike together."""
    return ", ".join(f"{reply} (x{n})" if n > 1 else str(reply) for reply, n in Counter(replies).most_common())
