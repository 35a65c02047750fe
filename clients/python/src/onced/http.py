"""The Idempotency-Key header, whatever serves HTTP: keys, fingerprints, what is stored, and what is refused."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from onced.errors import (
    ClaimLostError,
    InDoubtError,
    InProgressError,
    NotBegunError,
    OncedError,
    Rule,
)
from onced.v1.record_pb2 import Outcome

log = logging.getLogger("onced")

KEY_BYTES = 512
"""The longest key, in bytes."""
SCOPED_KEY_BYTES = 479
"""The longest key beside a scope, whose digest stands in front of it, in bytes."""
MAX_REQUEST_BYTES = 1 << 20
DEFAULT_WAIT = 10.0
"""How long a duplicate waits for the answer, in seconds."""

STORED_HEADERS = frozenset(
    {
        "cache-control",
        "content-disposition",
        "content-encoding",
        "content-language",
        "etag",
        "last-modified",
        "link",
        "location",
        "retry-after",
        "vary",
    }
)
"""What is stored of an answer's headers, besides its content type."""

Said = Literal["store", "retry", "in_doubt"]
"""What is to become of an answer, and of its key."""

Header = tuple[bytes, bytes]

QUOTED = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)"')
PRINTABLE = re.compile(r"[ -~]+")

# The status of each problem, its title, and after how many seconds to ask again.
PROBLEMS: dict[str, tuple[int, str, int | None]] = {
    "IDEMPOTENCY_KEY_MISSING": (400, "The Idempotency-Key header is missing", None),
    "IDEMPOTENCY_KEY_INVALID": (400, "The Idempotency-Key header is invalid", None),
    "SCOPE_MISSING": (400, "The request does not say whose key it is", None),
    "REQUEST_IN_PROGRESS": (409, "The same request is still being handled", 1),
    "CLAIM_LOST": (409, "Another attempt of this request took over", 1),
    "IN_DOUBT": (409, "What an earlier attempt of this request did is unknown", None),
    "REQUEST_TOO_LARGE": (413, "The request is too large", None),
    "FINGERPRINT_MISMATCH": (422, "The Idempotency-Key was used for another request", None),
    "RESPONSE_NOT_STORABLE": (500, "The answer to this request cannot be stored", None),
    "REFUSED": (500, "The request cannot be made idempotent", None),
    "UNAVAILABLE": (503, "The request cannot be made idempotent now", 1),
}


class Problem(Exception):
    """A request that is refused, by a code of `PROBLEMS`."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.status, self.title, self.retry_after = PROBLEMS[code]
        self.detail = detail

    def body(self) -> bytes:
        """As RFC 9457 has it."""
        told = {"title": self.title, "status": self.status, "detail": self.detail, "code": self.code}
        return json.dumps(told, ensure_ascii=False).encode()

    def headers(self) -> list[Header]:
        headers = [(b"content-type", b"application/problem+json")]
        if self.retry_after is not None:
            headers.append((b"retry-after", str(self.retry_after).encode()))
        return headers


@dataclass(frozen=True)
class Response:
    """An answer: its body, and those of its headers that count."""

    status: int
    headers: Sequence[Header]
    body: bytes


def parse_key(values: Sequence[bytes], *, scoped: bool) -> str | None:
    """The key in the Idempotency-Key headers of a request; None if there is none."""
    if not values:
        return None
    if len(values) > 1:
        raise Problem("IDEMPOTENCY_KEY_INVALID", "there is more than one such header")
    text = values[0].decode("latin-1").strip(" ")
    if text.startswith('"'):
        quoted = QUOTED.fullmatch(text)
        if not quoted:
            raise Problem("IDEMPOTENCY_KEY_INVALID", "it begins with a quotation mark, and is no quoted string")
        text = re.sub(r"\\(.)", r"\1", quoted[1])
    elif text and not PRINTABLE.fullmatch(text):
        raise Problem("IDEMPOTENCY_KEY_INVALID", "it is to be printable ASCII")
    longest = SCOPED_KEY_BYTES if scoped else KEY_BYTES
    if not 1 <= len(text) <= longest:
        raise Problem("IDEMPOTENCY_KEY_INVALID", f"it is to have 1 to {longest} characters, and has {len(text)}")
    return text


def scoped_key(scope: str, key: str) -> str:
    """The key in onced of a key that is unique within a scope."""
    return f"{hashlib.sha256(scope.encode()).hexdigest()[:32]}:{key}"


def fingerprint(method: str, target: bytes, body: bytes, kind: str = "http") -> bytes:
    """What tells one request from another: method, path and query as sent, and body."""
    return hashlib.sha256(b"\0".join((kind.encode(), method.encode(), target, body))).digest()


def fate(status: int, said: Said | None, rule: Rule) -> Said:
    """What becomes of an answer: as its handler said, or by its status."""
    if said:
        return said
    if status >= 500:
        return rule
    # These say that the request was not looked at.
    return "retry" if status in (401, 408, 425, 429) else "store"


def unstorable(status: int, headers: Iterable[Header], stored: frozenset[str]) -> str | None:
    """Why an answer cannot be stored, as far as its head tells."""
    if status < 200:
        return f"it is a {status}, which is no answer yet"
    for name, value in headers:
        if _name(name) == "content-type" and value.split(b";")[0].strip().lower() == b"text/event-stream":
            return "it is a stream of events, which has no end"
        if _name(name) in stored or _name(name) == "content-type":
            try:
                value.decode()
            except UnicodeDecodeError:
                return f"its header {_name(name)} is not UTF-8"
    return None


def _name(name: bytes) -> str:
    return name.decode("latin-1").lower()


class HttpCodec:
    """Answers as outcomes, as every client library stores them."""

    def __init__(self, stored: frozenset[str]) -> None:
        self._stored = stored

    def encode(self, response: Response) -> Outcome:
        outcome = Outcome(response=response.body)
        outcome.metadata["http.status"] = str(response.status)
        for raw_name, raw in response.headers:
            name, value = _name(raw_name), raw
            if name == "content-type":
                outcome.content_type = value.decode()
            elif name in self._stored:
                there = f"http.header.{name}"
                before = f"{outcome.metadata[there]}\n" if there in outcome.metadata else ""
                outcome.metadata[there] = before + value.decode()
        return outcome

    def decode(self, outcome: Outcome) -> Response:
        status = outcome.metadata.get("http.status", "")
        if not re.fullmatch("[2-9][0-9][0-9]", status):
            raise ValueError("it is no answer of HTTP: the key was used otherwise")
        headers = [(b"content-type", outcome.content_type.encode())] if outcome.content_type else []
        for name, values in sorted(outcome.metadata.items()):
            if name.startswith("http.header."):
                known = name.removeprefix("http.header.").encode("latin-1")
                headers += [(known, value.encode()) for value in values.split("\n")]
        return Response(int(status), headers, outcome.response)


def problem_of(error: OncedError) -> Problem:
    """What a caller is told of a request that got no answer."""
    if isinstance(error, InProgressError):
        return Problem("REQUEST_IN_PROGRESS", "ask again in a moment")
    if isinstance(error, InDoubtError):
        return Problem("IN_DOUBT", "an operator must find out what it did, before it may run again")
    if isinstance(error, ClaimLostError):
        return Problem("CLAIM_LOST", "ask again for its answer, which is what counts")
    if isinstance(error, NotBegunError) and error.reason == "FINGERPRINT_MISMATCH":
        return Problem("FINGERPRINT_MISMATCH", "take a new key for each request")
    log.error("a request with an idempotency key was refused: %s", error)
    if isinstance(error, NotBegunError) and (error.unavailable or error.reason is None):
        return Problem("UNAVAILABLE", "nothing was done; ask again in a moment")
    return Problem("REFUSED", "the log of the server says why")
