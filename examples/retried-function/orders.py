"""An order, as callers send it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Order:
    """So many of a product."""

    order_id: str
    product: str
    quantity: int


class BadOrderError(ValueError):
    """The request is no order. The message names the field."""


def read_order(body: bytes) -> Order:
    """Reads the body of a request."""
    try:
        fields = json.loads(body)
    except ValueError:
        raise BadOrderError("the body is not JSON") from None
    if not isinstance(fields, dict):
        raise BadOrderError("the body is not an object of JSON")
    return Order(_name(fields, "order_id"), _name(fields, "product"), _count(fields, "quantity"))


def _name(fields: dict[str, Any], field: str) -> str:
    value = _there(fields, field)
    if not (isinstance(value, str) and 1 <= len(value) <= 100 and value.isascii() and value.isprintable()):
        raise BadOrderError(f"{field}: is 1 to 100 printable characters of ASCII")
    return value


def _count(fields: dict[str, Any], field: str) -> int:
    value = _there(fields, field)
    if type(value) is not int or not 1 <= value <= 1_000_000:
        raise BadOrderError(f"{field}: is a whole number from 1 to 1000000")
    return value


def _there(fields: dict[str, Any], field: str) -> Any:
    if field not in fields:
        raise BadOrderError(f"{field}: is missing")
    return fields[field]
