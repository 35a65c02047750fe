"""The same function as people write it first: the guard, then the work. It loses orders.

Between the two the order is marked as processed, and is not.
"""

from __future__ import annotations

from flask import Flask, request
from flask.typing import ResponseReturnValue

import database
from orders import BadOrderError, Order, read_order

app = Flask(__name__)


@app.post("/process_order")
def process_order() -> ResponseReturnValue:
    """Takes an order from stock, unless it was seen before."""
    try:
        order = read_order(request.get_data())
    except BadOrderError as error:
        return {"error": str(error)}, 400
    with database.transaction() as execute:
        first = execute(
            "INSERT INTO seen (order_id) VALUES (%s) ON CONFLICT DO NOTHING RETURNING order_id", order.order_id
        )
    if not first:
        return {"order_id": order.order_id, "result": "already processed"}
    taken = take_from_stock(order)
    if not taken:
        return {"order_id": order.order_id, "result": "not enough in stock"}, 409
    return {"order_id": order.order_id, "result": "taken"}


def take_from_stock(order: Order) -> bool:
    """Takes the order from stock, if there is enough."""
    with database.transaction() as execute:
        return bool(
            execute(
                "UPDATE stock SET available = available - %s WHERE product = %s AND available >= %s RETURNING product",
                order.quantity,
                order.product,
                order.quantity,
            )
        )
