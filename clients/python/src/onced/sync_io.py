"""Calls, and sessions of calls, that block their thread."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent import futures
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

import grpc

from onced.core import closed
from onced.errors import CallError
from onced.process import Home
from onced.retry import NEVER_SENT
from onced.session import MARGIN, PARTING, Line, Session, out_of_time
from onced.transport import OPTIONS, A, Lane, Metadata, Method, Q, Server
from onced.v1 import idempotency_service_pb2 as v1
from onced.v1.idempotency_service_pb2_grpc import IdempotencyServiceStub

log = logging.getLogger("onced")

CLOSING = 1.0
"""How long the end of sessions may take when their client is closed, in seconds."""

REFUSING = 0.2
"""How long after its headers a stream may prove to be refused, in seconds: gRPC tells of headers also if none came."""

WATCH = 0.4
"""How long gRPC's thread that watches a connection may go on when that is to end, in seconds."""

Waiter = futures.Future[v1.SessionResponse | None]


class ThreadSession(Session[Waiter]):
    """A session with a thread that reads. That which sends is gRPC's own, and keeps the time as well."""

    def __init__(
        self, channel: grpc.Channel, metadata: Metadata, gone: Callable[[Session[Waiter], bool], None]
    ) -> None:
        super().__init__(gone)
        self._woken: SimpleQueue[None] = SimpleQueue()
        self._call: Any = IdempotencyServiceStub(channel).Session(self._requests(), metadata=metadata)
        self._parting = threading.Timer(PARTING, self._call.cancel)
        self._parting.daemon = True
        # Nobody's process is kept alive for it.
        self._thread = threading.Thread(target=self._read, name="onced-session", daemon=True)
        try:
            self._thread.start()
        except BaseException:
            self.cancel()
            self.drop()
            raise

    def tell(self, waiter: Waiter, answer: v1.SessionResponse | None) -> None:
        if waiter.set_running_or_notify_cancel():
            waiter.set_result(answer)

    def wake(self) -> None:
        self._woken.put(None)
        if self.is_over and self._call.is_active():
            with suppress(RuntimeError):  # It has started before, or no thread is to be had.
                self._parting.start()

    def cancel(self) -> None:
        self._call.cancel()

    def join(self, patience: float) -> None:
        self._thread.join(max(patience, 0.0))

    def _requests(self) -> Iterator[v1.SessionRequest]:
        while True:
            message = self.next()
            if message is not None:
                yield message
            elif self.is_over:
                return
            else:
                with suppress(Empty):
                    self._woken.get(timeout=self.look())

    def _read(self) -> None:
        useless = False
        try:
            self._call.initial_metadata()
            try:
                self._call.exception(REFUSING)
            except grpc.FutureTimeoutError:
                self.stands()
            for answer in self._call:
                self.answered(answer)
        except grpc.RpcError:
            useless = self.is_useless(self._call.code())
        except Exception as error:
            log.debug("a session broke off: %s", error)
        finally:
            self._call.cancel()
            self._parting.cancel()
            self.ended(useless=useless)


class ThreadIo:
    """Calls that block their thread."""

    def __init__(self, home: Home, closing: threading.Event, sessions: bool) -> None:
        self._home = home
        self._closing = closing
        self._sessions = sessions
        self._mutex = threading.Lock()
        self._lines: dict[tuple[str, Lane], Line[grpc.Channel, ThreadSession]] = {}
        self._waiting: set[grpc.Future[Any] | Waiter] = set()
        self._down: dict[grpc.Channel, Callable[[grpc.ChannelConnectivity], None]] = {}
        self._is_closed = False

    async def send(self, server: Server, method: Method[Q, A], request: Q, timeout: float, metadata: Metadata) -> A:
        line = self._line(server, method.lane)
        stub = IdempotencyServiceStub(line.channel)
        with line:
            call: grpc.Future[A] = getattr(stub, method.name).future(request, timeout=timeout, metadata=metadata)
            try:
                self._note(method, call)
                return call.result()
            except grpc.FutureCancelledError:
                raise self._taken_back(method) from None
            except grpc.RpcError as error:
                if any(sign in (error.details() or "") for sign in NEVER_SENT):
                    self._see_to(line.channel)
                raise
            except BaseException:
                call.cancel()  # An interrupt: the server is to know that nobody waits any more.
                raise
            finally:
                self._waiting.discard(call)

    def take(
        self, server: Server, method: Method[Q, A], request: Q, timeout: float, metadata: Metadata
    ) -> Coroutine[Any, Any, v1.SessionResponse | None] | None:
        line = self._line(server, method.lane)
        session = line.session(metadata)
        if session is None:
            return None
        waiter: Waiter = futures.Future()
        number = session.take(method, request, timeout, waiter)
        return None if number is None else self._answer(line, session, number, waiter, method, timeout)

    async def _answer(
        self,
        line: Line[grpc.Channel, ThreadSession],
        session: ThreadSession,
        number: int,
        waiter: Waiter,
        method: Method[Q, A],
        timeout: float,
    ) -> v1.SessionResponse | None:
        with line:
            try:
                self._note(method, waiter)
                try:
                    return waiter.result(timeout + min(MARGIN, timeout / 4))
                except futures.TimeoutError:
                    if session.forget(number, late=True):
                        raise out_of_time() from None
                    return waiter.result()  # It came just now, unless it is taken back as well.
            except futures.CancelledError:
                session.forget(number)
                raise self._taken_back(method) from None
            except BaseException:
                session.forget(number)
                raise
            finally:
                self._waiting.discard(waiter)

    async def sleep(self, span: float, ends_at_close: bool) -> None:
        if not ends_at_close:
            threading.Event().wait(span)
        elif self._closing.wait(span):
            raise closed()

    def take_back(self) -> None:
        """Ends what waits for somebody else's work."""
        for call in list(self._waiting):
            call.cancel()

    def _note(self, method: Method[Q, A], call: grpc.Future[A] | Waiter) -> None:
        if method.ends_at_close:
            self._waiting.add(call)
            if self._closing.is_set():
                raise closed()

    def _taken_back(self, method: Method[Q, A]) -> Exception:
        # By `take_back`; or with the connections, whose last calls are renewals that no run needs any more.
        return closed() if method.ends_at_close else CallError("this client is closed")

    def _see_to(self, channel: grpc.Channel) -> None:
        """Has a thread of gRPC's see to a connection until it stands again.

        Otherwise it comes up only while calls are under way, and those fail at once as long as it is down.
        """

        def changed(state: grpc.ChannelConnectivity) -> None:
            if state is grpc.ChannelConnectivity.READY:
                channel.unsubscribe(changed)
                self._down.pop(channel, None)

        with self._mutex:
            if self._is_closed or channel in self._down:
                return
            self._down[channel] = changed
            try:
                channel.subscribe(changed, try_to_connect=True)
            except RuntimeError as error:  # No thread is to be had; the call is to be repeated all the same.
                del self._down[channel]
                log.debug("nobody sees to a connection: %s", error)

    def _line(self, server: Server, lane: Lane) -> Line[grpc.Channel, ThreadSession]:
        self._home.check()
        with self._mutex:
            if self._is_closed:
                raise CallError("this client is closed")
            line = self._lines.get((server.target, lane))
            if line is None:
                channel = (
                    grpc.insecure_channel(server.target, OPTIONS)
                    if server.credentials is None
                    else grpc.secure_channel(server.target, server.credentials, OPTIONS)
                )
                line = self._lines[server.target, lane] = Line(channel, _start if self._sessions else None)
            return line

    def close(self) -> None:
        with self._mutex:
            self._is_closed = True
            lines = list(self._lines.values())
            self._lines.clear()
        ending, until = [session for line in lines for session in line.close()], time.monotonic() + CLOSING
        for session in ending:
            session.join(until - time.monotonic())
        watched = list(self._down.items())
        for channel, changed in watched:
            channel.unsubscribe(changed)
        if watched:
            time.sleep(WATCH)
        for line in lines:
            line.channel.close()


def _start(line: Line[grpc.Channel, ThreadSession], metadata: Metadata) -> ThreadSession:
    return ThreadSession(line.channel, metadata, line.gone)
