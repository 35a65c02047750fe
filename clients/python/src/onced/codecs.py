"""How values become outcomes, and outcomes values."""

from __future__ import annotations

import json
from typing import Any, Generic, Protocol, TypeVar

from google.protobuf.message import Message

from onced.v1.record_pb2 import Outcome

T = TypeVar("T")
M = TypeVar("M", bound=Message)


class Codec(Protocol[T]):
    """Turns what the work returns into an outcome, and back. Either may raise any exception."""

    def encode(self, value: T, /) -> Outcome:
        """The outcome to store."""
        ...

    def decode(self, outcome: Outcome, /) -> T:
        """The value of an outcome that is a response."""
        ...


def check_type(outcome: Outcome, expected: str) -> None:
    """Refuses an outcome of another content type. One without any may be read."""
    there, wanted = (_media_type(text) for text in (outcome.content_type, expected))
    if outcome.content_type and there != wanted:
        raise ValueError(f"the outcome is {outcome.content_type}, and not {expected}")


def _media_type(text: str) -> tuple[str, str]:
    """The type, and the name of the message if it is one; other parameters do not tell types apart."""
    essence, *parameters = text.split(";")
    split = (parameter.strip().partition("=") for parameter in parameters)
    named = {name.lower(): value.strip('"') for name, _, value in split}
    return essence.strip().lower(), named.get("messagetype", "")


class Json:
    """UTF-8 JSON, of whatever `json` takes; nothing returned is `null`."""

    content_type = "application/json"

    def encode(self, value: Any) -> Outcome:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return Outcome(response=text.encode(), content_type=self.content_type)

    def decode(self, outcome: Outcome) -> Any:
        check_type(outcome, self.content_type)
        return json.loads(outcome.response.decode())


class Bytes:
    """Bytes, as they are."""

    content_type = "application/octet-stream"

    def encode(self, value: bytes) -> Outcome:
        return Outcome(response=value, content_type=self.content_type)

    def decode(self, outcome: Outcome) -> bytes:
        check_type(outcome, self.content_type)
        return outcome.response


class Text:
    """Text, in UTF-8."""

    content_type = "text/plain; charset=utf-8"

    def encode(self, value: str) -> Outcome:
        return Outcome(response=value.encode(), content_type=self.content_type)

    def decode(self, outcome: Outcome) -> str:
        check_type(outcome, self.content_type)
        return outcome.response.decode()


class Protobuf(Generic[M]):
    """Messages of one type, in their deterministic encoding."""

    def __init__(self, message: type[M]) -> None:
        self._message = message
        self.content_type = f'application/x-protobuf; messageType="{message.DESCRIPTOR.full_name}"'

    def encode(self, value: M) -> Outcome:
        if not isinstance(value, self._message):
            raise TypeError(f"the work returned {type(value).__name__}, and not {self._message.__name__}")
        return Outcome(response=value.SerializeToString(deterministic=True), content_type=self.content_type)

    def decode(self, outcome: Outcome) -> M:
        check_type(outcome, self.content_type)
        return self._message.FromString(outcome.response)


JSON = Json()
BYTES = Bytes()
TEXT = Text()
