"""The one place that sends calls: which server, which connection, how often.

It is written once for threads and for asyncio: what it does to the world goes through an `Io`. That of threads blocks
and never suspends, so that `blocking` can run the same coroutines without a loop.
"""

from __future__ import annotations

import enum
import logging
import random
from collections.abc import Awaitable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, NoReturn, Protocol, TypeVar
from urllib.parse import urlsplit

import grpc
from google.protobuf.message import Message

from onced import access, retry, session
from onced.access import Access
from onced.clock import Clock
from onced.errors import CallError, SetupError
from onced.retry import Refusal
from onced.v1 import idempotency_service_pb2 as v1

log = logging.getLogger("onced")

CONNECT_TIME = 3.0
"""How long a connection may take to come up, in seconds."""
KEEPALIVE = (10.0, 5.0)
"""How often a busy connection is asked whether it lives, and how long the answer may take, in seconds."""
SHORTEST = 0.001
"""How long an attempt may take at least, in seconds."""

OPTIONS: list[tuple[str, Any]] = [
    # What is sent again, and when, is decided here alone.
    ("grpc.enable_retries", 0),
    ("grpc.service_config_disable_resolution", 1),
    # Channels of one process share their connections unless told not to; those of holders are to be apart.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    # Called "min" since a connection that is under way when the next one is due is let finish.
    ("grpc.min_reconnect_backoff_ms", int(CONNECT_TIME * 1000)),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", int(KEEPALIVE[0] * 1000)),
    ("grpc.keepalive_timeout_ms", int(KEEPALIVE[1] * 1000)),
    # A waiting Begin sends nothing else for long.
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.primary_user_agent", "onced-python/0.1.0"),
]

FORMS = "write HOST:PORT, http://HOST:PORT, or https://HOST:PORT for TLS"

Q = TypeVar("Q", bound=Message)
A = TypeVar("A", bound=Message)
T = TypeVar("T")


class Lane(enum.Enum):
    """The connection that a call takes.

    Calls of holders have their own, so that no crowd of waiting calls can hold up the holder they wait for.
    """

    WAITING = "Begin"
    HOLDING = "Complete, Renew, Release"


@dataclass(frozen=True)
class Method(Generic[Q, A]):
    """A call of the API."""

    name: str
    lane: Lane
    request: type[Q]
    answer: type[A]
    ends_at_close: bool = False
    """Whether closing the client takes it back."""

    @property
    def field(self) -> str:
        """Its name in the messages of a session."""
        return self.name.lower()


BEGIN = Method("Begin", Lane.WAITING, v1.BeginRequest, v1.BeginResponse, ends_at_close=True)
ASK_AGAIN = Method("Begin", Lane.WAITING, v1.BeginRequest, v1.BeginResponse)
COMPLETE = Method("Complete", Lane.HOLDING, v1.CompleteRequest, v1.CompleteResponse)
RENEW = Method("Renew", Lane.HOLDING, v1.RenewRequest, v1.RenewResponse)
RELEASE = Method("Release", Lane.HOLDING, v1.ReleaseRequest, v1.ReleaseResponse)

Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Patience:
    """How long a call is tried, in seconds."""

    total: float
    attempt: float
    """Before the next server is tried."""


@dataclass(frozen=True)
class Answer(Generic[T]):
    """An answer, and when the attempt that got it was sent: a holder counts its lock from there."""

    message: T
    sent: float


@dataclass(frozen=True)
class Server:
    """A server as it is called."""

    name: str
    target: str
    credentials: grpc.ChannelCredentials | None

    @classmethod
    def parse(cls, name: str, shown: Access) -> Server:
        """Reads an address, and the files for TLS if it is called so."""
        scheme, _, rest = name.rpartition("://")
        try:
            parts = urlsplit(f"//{rest}")
            host, port = parts.hostname, parts.port
        except ValueError:
            host = port = None
            rest = ""
        if scheme not in ("", "http", "https") or not host or parts.netloc != rest or parts.username is not None:
            raise SetupError(f"{name!r} is no address of a server: {FORMS}")
        if port is None:
            raise SetupError(
                f"{name!r} is no address of a server: the port is missing; onced listens on 7411 by default"
            )
        if scheme == "https":
            return cls(name, f"dns:///{rest}", shown.credentials())
        if shown.has_token and not shown.token_in_plaintext and not access.is_loopback(host):
            raise SetupError(
                f"a token would go to {name!r} for all to read: write https://, or say allow_token_in_plaintext"
            )
        return cls(name, f"dns:///{rest}", None)

    def refusal(self, error: grpc.RpcError, timeout: float) -> tuple[Refusal, bool]:
        """What an answer says; and whether somebody has set it up so, and it is the same next time."""
        refusal = Refusal.of(error)
        if refusal.reason is not None:
            return refusal, False
        if refusal.code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return Refusal(refusal.code, f"{self.name} did not answer within {timeout:.1f} s"), False
        what = access.advice(refusal.message, self.credentials is not None)
        message = f"{self.name}: {refusal.message}" + (f"; {what}" if what else "")
        return Refusal(refusal.code, message, pushback=refusal.pushback), what is not None


class Io(Protocol):
    """What a transport does to the world: in threads, or in asyncio."""

    async def send(self, server: Server, method: Method[Q, A], request: Q, timeout: float, metadata: Metadata) -> A:
        """Sends a call once, or raises a `grpc.RpcError`."""

    def take(
        self, server: Server, method: Method[Q, A], request: Q, timeout: float, metadata: Metadata
    ) -> Awaitable[v1.SessionResponse | None] | None:
        """Sends a call in the session of its connection; None if none takes it.

        To await: the answer, or None if the session ended first. Raises a `grpc.RpcError` if it does not come in time.
        """

    async def sleep(self, span: float, ends_at_close: bool) -> None:
        """Waits for `span` seconds between attempts."""


class Transport:
    """Sends each call until it is answered, refused, or out of time."""

    def __init__(self, servers: str, shown: Access, clock: Clock, io: Io) -> None:
        names = [name.strip() for name in servers.split(",") if name.strip()]
        if not names:
            raise SetupError("no server is named: name at least one, such as 127.0.0.1:7411")
        self.servers = [Server.parse(name, shown) for name in names]
        if shown.is_for_tls and all(server.credentials is None for server in self.servers):
            raise SetupError("certificates are for TLS, and no server is called by it: write https://HOST:PORT")
        self.clock = clock
        self.io = io
        self._bearer = shown.bearer(clock())
        # Each client starts elsewhere, so that a fleet of them spreads over the servers.
        self._current = random.randrange(len(self.servers))
        self._reached = False

    async def call(self, method: Method[Q, A], request: Q, patience: Patience) -> Answer[A]:
        """Sends a call until it is answered; raises `CallError` when it is refused, or the time is up."""
        history = _History(self, patience)
        while True:
            index = self._current
            server = self.servers[index]
            timeout = max(min(patience.attempt, history.deadline - self.clock()), SHORTEST)
            try:
                answer = await self._attempt(server, method, request, timeout, history)
            except grpc.RpcError as error:
                refusal, setup = server.refusal(error, timeout)
            else:
                self._reached = True
                return answer
            history.note(refusal, setup)
            token = history.token
            if refusal.code is grpc.StatusCode.UNAUTHENTICATED and token and self._renewed(token):
                continue
            pause = history.pause(refusal, setup)
            # If another call has moved on already, its choice stands.
            if self._current == index:
                self._current = (index + 1) % len(self.servers)
            if pause:
                log.debug("%s: trying %s again in %.2f s: %s", server.name, method.name, pause, refusal)
                await self.io.sleep(pause, method.ends_at_close)

    async def _attempt(
        self, server: Server, method: Method[Q, A], request: Q, timeout: float, history: _History
    ) -> Answer[A]:
        """Sends a call once: in a session if one takes it; by itself if none does, or if that ended or refused."""
        sent = self.clock()
        answering = self.io.take(server, method, request, timeout, self._metadata(sent, history))
        if answering is not None:
            answer = await answering
            if answer is None:
                history.unsettled = True  # It may have been carried out all the same.
            elif refusal := session.turned_away(answer):
                history.note(refusal, False)
            else:
                return Answer(session.read(answer, method), sent)
            timeout -= self.clock() - sent
            sent = self.clock()
        metadata = self._metadata(sent, history)
        return Answer(await self.io.send(server, method, request, max(timeout, SHORTEST), metadata), sent)

    def _metadata(self, now: float, history: _History) -> Metadata:
        history.token = self._bearer.header(now) if self._bearer else None
        return (("authorization", history.token),) if history.token else ()

    def _renewed(self, token: str) -> bool:
        return self._bearer is not None and self._bearer.renew(token, self.clock())

    def heard(self) -> None:
        """A server has answered this client."""
        self._reached = True

    @property
    def reached(self) -> bool:
        """Whether any server has ever answered."""
        return self._reached


class _History:
    """The attempts of one call, and what they come to."""

    def __init__(self, transport: Transport, patience: Patience) -> None:
        self._transport = transport
        self._total = patience.total
        self.deadline = transport.clock() + patience.total
        self._attempts = 0
        self._said: Refusal | None = None
        self.unsettled = False
        """Whether an attempt may have been carried out without an answer."""
        self.token: str | None = None
        """The header that the last attempt has shown."""
        self._answered = False
        self._setup = False
        self._pushback = 0.0
        """The longest that a server of this round asked for."""

    def note(self, refusal: Refusal, setup: bool) -> None:
        """Remembers what an attempt came to, whatever comes after it."""
        # An address that nobody knows is more likely a wrong one than an outage.
        self._setup |= setup or (refusal.is_unknown_host and not self._transport.reached)
        if refusal.reason is not None:
            self._transport.heard()
            self._said = refusal
            self._answered |= refusal.code is not grpc.StatusCode.UNAVAILABLE
        self._answered |= refusal.is_of_another
        self.unsettled |= refusal.may_have_written

    def pause(self, refusal: Refusal, setup: bool) -> float:
        """How long to wait before the next attempt; raises if that would not help, or there is no time for it."""
        self._attempts += 1
        servers = len(self._transport.servers)
        # A client that was answered before sits it out: certificates are renewed, servers replaced.
        hopeless = setup and self._attempts >= servers and not self._transport.reached
        if hopeless or not refusal.may_pass:
            self._fail(refusal, str(refusal), unavailable=False)
        self._pushback = max(self._pushback, refusal.pushback or 0.0)
        pause = retry.wait(self._attempts, servers, self._pushback)
        if self._attempts % servers == 0:
            self._pushback = 0.0
        left = self.deadline - self._transport.clock()
        if pause >= left:
            self._fail(refusal, self._out_of_time(refusal, max(self._total - left, 0.0)), unavailable=True)
        return pause

    def _out_of_time(self, last: Refusal, tried: float) -> str:
        names = ", ".join(server.name for server in self._transport.servers)
        if self._said is None:
            return f"no answer from {names} in {tried:.1f} s; last: {last}"
        before = "" if last is self._said else f"; before that: {self._said}"
        return f"{names} answered, but could not do it in {tried:.1f} s; last: {last}{before}"

    def _fail(self, last: Refusal, message: str, *, unavailable: bool) -> NoReturn:
        told = self._said if unavailable and self._said else last
        raise CallError(
            message,
            code=last.code,
            reason=told.reason,
            values=last.values,
            unavailable=unavailable,
            unsettled=self.unsettled,
            answered=self._answered or not unavailable,
            setup=self._setup,
        )


def blocking(call: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine whose `Io` blocks: it ends without ever being suspended."""
    try:
        call.send(None)
    except StopIteration as end:
        value: T = end.value
        return value
    call.close()
    raise AssertionError("a call that blocks was suspended")
