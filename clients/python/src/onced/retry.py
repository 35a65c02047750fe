"""What is sent again, and when.

Every call of onced may be repeated with the same arguments, so the only questions are whether it would help, and how
long to wait.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

FIRST_WAIT = 0.05
"""The wait before the second round over the servers, in seconds, before jitter."""
LONGEST_WAIT = 2.0
"""The longest wait between rounds, in seconds, before jitter."""

DOMAIN = "onced.dev"
"""The domain of every ErrorInfo that onced sends."""

# What gRPC says when there was no connection, so that the call cannot have been carried out.
UNKNOWN_HOST = "DNS resolution failed"
NEVER_SENT = ("failed to connect to all addresses", UNKNOWN_HOST, "Failed to pick subchannel")
# What a connection that breaks in mid-call can leave of it, under other codes than UNAVAILABLE.
BROKEN = ("RST_STREAM", "Stream removed", "Socket closed", "Connection reset", "GOAWAY")


class Status(Protocol):
    """What the errors of grpc and of grpc.aio have in common."""

    def code(self) -> grpc.StatusCode | None: ...
    def details(self) -> str | None: ...
    def trailing_metadata(self) -> Iterable[tuple[str, str | bytes]] | None: ...


@dataclass(frozen=True)
class Refusal:
    """How one attempt of a call ended, if not with its answer."""

    code: grpc.StatusCode
    message: str
    reason: str | None = None
    """None if it is not from onced."""
    values: Mapping[str, str] = field(default_factory=dict)
    pushback: float | None = 0.0
    """How long the server asks to wait, in seconds; None: it asks not to be asked again."""

    @classmethod
    def of(cls, error: grpc.RpcError) -> Refusal:
        """Reads what a server or the connection said."""
        status = cast(Status, error)
        code = status.code() or grpc.StatusCode.UNKNOWN
        # That of grpc.aio is no mapping that dict() could read.
        metadata = {entry[0]: entry[1] for entry in status.trailing_metadata() or ()}
        info, delay = _details(metadata.get("grpc-status-details-bin"))
        pushback = _pushback(metadata["grpc-retry-pushback-ms"]) if "grpc-retry-pushback-ms" in metadata else delay
        message = status.details() or code.name
        if info is None:
            return cls(code, message, pushback=pushback)
        return cls(code, message, info.reason, dict(info.metadata), pushback)

    def __str__(self) -> str:
        return f"{self.message} ({self.reason})" if self.reason else self.message

    @property
    def may_pass(self) -> bool:
        """Whether the same call may fare better when it is made again."""
        if self.pushback is None:
            return False
        if self.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            return True
        if self.reason is not None:
            return False
        # Broken connections come as these codes, without a reason of the server's.
        return self.code in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN) or (
            self.code is grpc.StatusCode.INTERNAL and any(sign in self.message for sign in BROKEN)
        )

    @property
    def is_unknown_host(self) -> bool:
        """Whether the name of the server has no address."""
        return self.reason is None and UNKNOWN_HOST in self.message

    @property
    def is_of_another(self) -> bool:
        """Whether somebody has answered who is no onced, and has more to say than that it is unavailable."""
        no_more = self.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        return self.reason is None and not no_more and not any(sign in self.message for sign in BROKEN)

    @property
    def may_have_written(self) -> bool:
        """Whether the attempt may have been carried out."""
        if self.reason is not None:
            return self.values.get("write") == "unknown"
        return not any(sign in self.message for sign in NEVER_SENT)


def _details(encoded: str | bytes | None) -> tuple[error_details_pb2.ErrorInfo | None, float]:
    """The ErrorInfo of onced, and the RetryInfo in seconds."""
    info, delay = None, 0.0
    status = status_pb2.Status()
    try:
        status.ParseFromString(encoded if isinstance(encoded, bytes) else b"")
        for detail in status.details:
            told, wait = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
            if detail.Unpack(told) and told.domain == DOMAIN:
                info = told
            elif detail.Unpack(wait):
                delay = max(0.0, wait.retry_delay.ToNanoseconds() / 1e9)
    except DecodeError:
        pass  # A detail that cannot be read says nothing.
    return info, delay


def _pushback(value: str | bytes) -> float | None:
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else value
    # By gRPC's retry design, a pushback that is no number of milliseconds forbids the retry.
    return int(text) / 1000 if text.isascii() and text.isdigit() else None


def wait(attempts: int, servers: int, pushback: float) -> float:
    """How long to wait before attempt number `attempts` (the first is 0) over `servers` servers, in seconds.

    A server that was not tried in this round is tried at once: its neighbour's pushback does not bind it.
    """
    if attempts % servers:
        return 0.0
    rounds = min(max(attempts // servers - 1, 0), 16)
    backoff = jittered(min(FIRST_WAIT * 2**rounds, LONGEST_WAIT))
    # Jitter goes on top of a pushback: less than it would be refused again.
    return max(backoff, pushback + jittered(pushback / 8)) if pushback else backoff


def jittered(span: float) -> float:
    """Between half of `span` and all of it."""
    return span * random.uniform(0.5, 1.0)
