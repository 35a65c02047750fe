"""Many calls on one stream, while there are many: what is the same in threads and in asyncio.

A session carries attempts of calls. What befalls the stream is no answer: the attempt goes on without it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import grpc
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status

from onced.options import wire
from onced.retry import Refusal
from onced.v1 import idempotency_service_pb2 as v1

if TYPE_CHECKING:
    from onced.transport import A, Metadata, Method

log = logging.getLogger("onced")

MANY = 16
"""How many calls are under way on a connection when it gets a session."""
MOST_OPEN = 512
"""How many calls a session carries at once. With the next one it bounds what waits to be sent."""
LARGEST = 64 * 1024
"""The largest request that goes by a session, in bytes."""
MARGIN = 0.25
"""How much longer than the server the client waits for an answer, in seconds."""
OPENING = 10.0
"""How long a session may take to open, in seconds."""
PARTING = 5.0
"""How long the server may take to end a session that is over, in seconds: there may be no server any more."""
IDLE = 30.0
"""How long a session stands without a call, in seconds."""
REST = 60.0
"""How long no session is opened after one that could not be, in seconds."""
SHORT = 1.0
"""A session that ended sooner than this after it opened was of no use. Three of them in a row are one too many."""

CODES = {code.value[0]: code for code in grpc.StatusCode if code is not grpc.StatusCode.OK}

W = TypeVar("W")
C = TypeVar("C")
S = TypeVar("S", bound="Session[Any]")


class Failed(grpc.RpcError):
    """How a call of a session failed, told as a unary call tells it."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.message)
        self._status = status

    def code(self) -> grpc.StatusCode:
        return CODES.get(self._status.code, grpc.StatusCode.UNKNOWN)

    def details(self) -> str:
        return self._status.message

    def trailing_metadata(self) -> Any:
        return (("grpc-status-details-bin", self._status.SerializeToString()),)


def out_of_time() -> Failed:
    """That the server has said nothing, where it ought to have said that the time is up."""
    return Failed(Status(code=grpc.StatusCode.DEADLINE_EXCEEDED.value[0], message="no answer in time"))


def read(answer: v1.SessionResponse, method: Method[Any, A]) -> A:
    """What a call was answered; raises how it failed."""
    kind = answer.WhichOneof("answer")
    if kind == "error":
        error = Failed(answer.error)
        # Its server has kept the time that the caller gave, and says no more than silence does.
        raise out_of_time() if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED else error
    if kind != method.field:
        said = f"the answer to {method.name} cannot be read: it holds {kind or 'nothing known here'}"
        raise Failed(Status(code=grpc.StatusCode.INTERNAL.value[0], message=said))
    message: A = getattr(answer, kind)
    return message


def turned_away(answer: v1.SessionResponse) -> Refusal | None:
    """Why a call was not taken that is to be made by itself then, for it is no matter of the call."""
    if not answer.HasField("error"):
        return None
    refusal = Refusal.of(Failed(answer.error))
    is_full = refusal.reason == "OVERLOADED" and refusal.values.get("limit") == "max_session_calls"
    return refusal if is_full or _is_farewell(refusal) else None


def _is_farewell(refusal: Refusal) -> bool:
    """Whether a server wants no more of a session, or of who opened it."""
    reason = refusal.reason or ""
    return reason == "DRAINING" or reason.startswith("CREDENTIALS")


class Session(Generic[W]):
    """A stream of calls, each with a waiter: a future of threads or of asyncio. None for an answer: there is none."""

    def __init__(self, gone: Callable[[Session[W], bool], None]) -> None:
        self.opened: float | None = None
        """When it came to stand."""
        self._gone = gone
        self._mutex = threading.Lock()
        self._open: dict[int, tuple[W, int]] = {}
        """Who waits for each call, and how many answers had come when it was taken."""
        self._answers = 0
        # What a call that is given up would send is taken out again, so that it holds no more than is open.
        self._outgoing: OrderedDict[int, v1.SessionRequest] = OrderedDict()
        self._last = 0
        self.is_retired = False
        """Whether it takes no more calls."""
        self._since = time.monotonic()
        """Since when it opens, or has been idle."""

    def tell(self, waiter: W, answer: v1.SessionResponse | None) -> None:
        """Tells a waiter, unless it waits no more."""
        raise NotImplementedError

    def wake(self) -> None:
        """Has what sends look again: there is something to send, or to end."""
        raise NotImplementedError

    def cancel(self) -> None:
        """Ends the stream at once."""
        raise NotImplementedError

    @property
    def is_over(self) -> bool:
        """Whether its last call has ended."""
        return self.is_retired and not self._open

    def take(self, method: Method[Any, Any], request: Message, timeout: float, waiter: W) -> int | None:
        """Sends a call; its number, or None if it has to go elsewhere."""
        if request.ByteSize() > LARGEST:
            return None
        call: dict[str, Any] = {method.field: request}
        message = v1.SessionRequest(timeout=wire(timeout), **call)
        with self._mutex:
            if self.opened is None or self.is_retired or len(self._open) >= MOST_OPEN:
                return None
            self._last += 1
            message.id = self._last
            self._open[self._last] = waiter, self._answers
            self._post(message)
            return self._last

    def forget(self, number: int, *, late: bool = False) -> bool:
        """Takes a call back, whose caller waits no more; false if it has its answer. `late`: its time is up."""
        with self._mutex:
            waiting = self._open.pop(number, None)
            if waiting is None:
                return False
            if self._outgoing.pop(number, None) is None:
                self._post(v1.SessionRequest(id=number, cancel=v1.CancelCall()))
            # A gateway answers pings also when nobody is behind it any more.
            self.is_retired |= late and waiting[1] == self._answers
            self._ended_one()
            return True

    def _post(self, message: v1.SessionRequest) -> None:
        if not self._outgoing:
            self.wake()
        self._outgoing[message.id] = message

    def _ended_one(self) -> None:
        if not self._open:
            self._since = time.monotonic()
            if self.is_retired:
                self.wake()

    def next(self) -> v1.SessionRequest | None:
        """What is to be sent next, if there is anything."""
        with self._mutex:
            return self._outgoing.popitem(last=False)[1] if self._outgoing else None

    def stands(self) -> None:
        """The server has taken the stream."""
        self.opened = self._since = time.monotonic()

    def answered(self, answer: v1.SessionResponse) -> None:
        """An answer has come. Nobody may wait for it any more."""
        refusal = turned_away(answer)
        with self._mutex:
            self._answers += 1
            self.is_retired |= refusal is not None and _is_farewell(refusal)
            waiting = self._open.pop(answer.id, None)
            self._ended_one()
        if waiting is not None:
            self.tell(waiting[0], answer)

    def look(self) -> float:
        """Ends what has been opening or idle for too long. In how many seconds to look again."""
        with self._mutex:
            limit = OPENING if self.opened is None else IDLE
            left = limit if self._open or self.is_retired else self._since + limit - time.monotonic()
            if left > 0:
                return left
            self.is_retired = True
            self.wake()
        if self.opened is None:
            self.cancel()
        return limit

    def drop(self) -> None:
        """Takes no more calls, and carries those that are open no further."""
        with self._mutex:
            self.is_retired = True
            left, self._open = list(self._open.values()), {}
            self._outgoing.clear()
            self.wake()
        for waiter, _ in left:
            self.tell(waiter, None)

    def is_useless(self, code: grpc.StatusCode) -> bool:
        """Whether another session would fare no better than this one, which ended so."""
        if self.opened is None:
            return code is not grpc.StatusCode.UNAVAILABLE
        return code is grpc.StatusCode.UNIMPLEMENTED

    def ended(self, *, useless: bool) -> None:
        """The stream has ended, however it did. `useless`: another one would fare no better."""
        self._gone(self, useless)
        self.drop()


class Line(Generic[C, S]):
    """A connection: the calls that are under way on it, and its session while they are many."""

    def __init__(self, channel: C, start: Callable[[Line[C, S], Metadata], S] | None) -> None:
        """`start` begins to open a session, if there are to be any."""
        self.channel = channel
        self._start = start
        self._mutex = threading.Lock()
        self._under_way = 0
        self._current: S | None = None
        self._all: list[S] = []
        self._not_before = 0.0
        self._short = 0

    def __enter__(self) -> None:
        with self._mutex:
            self._under_way += 1

    def __exit__(self, *_: object) -> None:
        with self._mutex:
            self._under_way -= 1

    def session(self, metadata: Metadata) -> S | None:
        """The session for one more call, if there is one. If there is to be one it opens in the background."""
        if self._start is None:
            return None
        with self._mutex:
            if self._current is not None and not self._current.is_retired:
                return self._current
            if self._under_way + 1 < MANY or time.monotonic() < self._not_before:
                return None
            try:
                self._current = self._start(self, metadata)
                self._all.append(self._current)
            except Exception as error:  # No thread is to be had, say.
                log.debug("no session could be opened: %s", error)
                self._not_before = time.monotonic() + REST
            return None

    def gone(self, session: Session[Any], useless: bool) -> None:
        """A session has ended."""
        now = time.monotonic()
        with self._mutex:
            if session in self._all:
                self._all.remove(session)
            if self._current is session:
                self._current = None
            was_short = session.opened is not None and now - session.opened < SHORT
            self._short = self._short + 1 if was_short else 0
            if useless or self._short == 3:
                self._not_before, self._short = now + REST, 0
            elif session.opened is None:  # The server is away, and may soon be back.
                self._not_before = now + SHORT

    def close(self) -> Sequence[S]:
        """Ends all sessions, and opens no more; those that it ended."""
        with self._mutex:
            self._start, self._current, sessions = None, None, list(self._all)
        for session in sessions:
            session.drop()
        return sessions
