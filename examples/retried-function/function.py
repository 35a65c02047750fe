"""A function over HTTP that takes an order from stock once, however often, and wherever, it is delivered."""

from __future__ import annotations

import json
import logging
import os
from typing import cast

import onced
from flask import Flask, request
from flask.typing import ResponseReturnValue

import database
from orders import BadOrderError, Order, read_order

log = logging.getLogger(__name__)
app = Flask(__name__)
# ONCED_SERVER says where onced is. The client connects at its first use, and serves all threads of this instance. The
# timeout is what it tries beyond `wait` while no server answers: with that it still is less than what callers wait.
client = onced.Client(timeout=5)
# In seconds. Longer than a live instance may stall, or it is taken over from for nothing.
LOCK_TTL = float(os.environ.get("LOCK_TTL", "15"))


@app.post("/process_order")
def process_order() -> ResponseReturnValue:
    """Takes an order from stock, or gives the answer that it had."""
    try:
        order = read_order(request.get_data())
    except BadOrderError as error:
        return {"error": str(error)}, 400
    try:
        answer: dict[str, str] = once(order).run(lambda claim: take_from_stock(order, claim.token)).value
    except onced.NotStoredError as error:
        # It is committed to the database. The next delivery finds it there, and stores it.
        answer = cast(dict[str, str], error.value)
    except onced.NotBegunError as error:
        if error.reason == "FINGERPRINT_MISMATCH":
            return {"error": f"order_id: {order.order_id} was used for another order"}, 422
        return try_again(order, error)
    except onced.OncedError as error:
        return try_again(order, error)
    return answer, 200 if answer["result"] == "taken" else 409


def once(order: Order) -> onced.Once[dict[str, str]]:
    """What is to be done once for an order."""
    return client.once(
        order.order_id,
        namespace="process-order",
        # What makes two requests the same order. Another quantity under one order_id is a mistake, and no duplicate.
        fingerprint=onced.fingerprint.of_json([order.product, order.quantity]),
        # How soon another delivery takes over from an instance that died. It is renewed while the work runs, so that it
        # may be shorter than the work; and it is shorter than `wait`, so that a delivery that waits sees the takeover.
        lock_ttl=LOCK_TTL,
        # How long a delivery waits for another one that is at work: less than the 30 s that callers wait for an answer.
        wait=20,
        # Whatever an attempt that died or failed has done stands in the database, which the next one asks: it is always
        # safe to run again. Without that, both of these would have to leave the key to a person ("hold", "in_doubt").
        on_lapse="take_over",
        on_failure="retry",
    )


def take_from_stock(order: Order, token: int) -> dict[str, str]:
    """Takes the order from stock, and keeps its answer and the fencing token, in one transaction."""
    with database.transaction() as execute:
        # One statement that locks the order against other attempts, lets none pass that is older than the last one that
        # came here, and brings the answer of one that got through.
        rows = execute(
            """
            INSERT INTO orders (order_id, fencing_token) VALUES (%s, %s)
            ON CONFLICT (order_id) DO UPDATE SET fencing_token = excluded.fencing_token
                WHERE orders.fencing_token <= excluded.fencing_token
            RETURNING answer
            """,
            order.order_id,
            token,
        )
        if not rows:
            # This instance was paused for longer than its lock. Nothing was changed, and its answer would not count.
            raise onced.Failure("the database has seen a newer fencing token", "retry")
        committed: str | None = rows[0][0]
        if committed is not None:
            # An earlier attempt died after its commit, and before onced had the answer.
            earlier: dict[str, str] = json.loads(committed)
            return earlier
        taken = execute(
            "UPDATE stock SET available = available - %s WHERE product = %s AND available >= %s RETURNING product",
            order.quantity,
            order.product,
            order.quantity,
        )
        # A refusal is an answer as well: it is kept, so that the order cannot be taken after its caller has heard no.
        answer = {"order_id": order.order_id, "result": "taken" if taken else "not enough in stock"}
        execute("UPDATE orders SET answer = %s WHERE order_id = %s", json.dumps(answer), order.order_id)
        return answer


def try_again(order: Order, error: onced.OncedError) -> ResponseReturnValue:
    """Says that this delivery has no answer to the order. Another one will get it."""
    log.warning("no answer to %s: %s", order.order_id, error.__cause__ or error)
    return {"error": "no answer yet, deliver it again"}, 503, {"Retry-After": "1"}
