"""Calls, and sessions of calls, that are awaited."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, TypeVar

import grpc
import grpc.aio

from onced.errors import CallError
from onced.process import Home
from onced.session import MARGIN, PARTING, Line, Session, out_of_time
from onced.transport import OPTIONS, A, Lane, Metadata, Method, Q, Server
from onced.v1 import idempotency_service_pb2 as v1
from onced.v1.idempotency_service_pb2_grpc import IdempotencyServiceStub

log = logging.getLogger("onced")

CLOSING = 1.0
"""How long the end of sessions may take when their client is closed, in seconds."""

T = TypeVar("T")

Waiter = asyncio.Future[v1.SessionResponse | None]


class Lasting(asyncio.Task[T]):
    """A task that nobody but its owner cancels.

    A loop that ends cancels all its tasks, and waits for them: an outcome is not dropped for that, and a lock lives
    until the work under it has stopped.
    """

    stopped = False

    def cancel(self, msg: Any | None = None) -> bool:
        return False

    def stop(self) -> None:
        self.stopped = True
        super().cancel()


def lasting(coroutine: Coroutine[Any, Any, T]) -> Lasting[T]:
    return Lasting(coroutine, loop=asyncio.get_running_loop())


class LoopSession(Session[Waiter]):
    """A session with a task that reads, and one that sends."""

    def __init__(
        self, channel: grpc.aio.Channel, metadata: Metadata, gone: Callable[[Session[Waiter], bool], None]
    ) -> None:
        super().__init__(gone)
        self._loop = asyncio.get_running_loop()
        self._woken = asyncio.Event()
        self._call: Any = IdempotencyServiceStub(channel).Session(metadata=metadata)  # type: ignore[call-arg]
        self._parting: asyncio.TimerHandle | None = None
        self._timer = self._loop.call_later(self.look(), self._tick)
        self.task = self._loop.create_task(self._read())

    def tell(self, waiter: Waiter, answer: v1.SessionResponse | None) -> None:
        if not waiter.done():
            waiter.set_result(answer)

    def wake(self) -> None:
        self._woken.set()
        if self.is_over and self._parting is None:
            self._parting = self._loop.call_later(PARTING, self.cancel)

    def cancel(self) -> None:
        self._call.cancel()

    def _tick(self) -> None:
        self._timer = self._loop.call_later(self.look(), self._tick)

    async def _send(self) -> None:
        try:
            while True:
                while (message := self.next()) is not None:
                    await self._call.write(message)
                if self.is_over:
                    await self._call.done_writing()
                    return
                self._woken.clear()
                await self._woken.wait()
        except Exception as error:  # The reader learns of it as well.
            log.debug("a session sends no more: %s", error)
            self.cancel()

    async def _read(self) -> None:
        useless, sending = False, None
        try:
            await self._call.initial_metadata()
            if not self._call.done():
                self.stands()
            sending = self._loop.create_task(self._send())
            while isinstance(answer := await self._call.read(), v1.SessionResponse):
                self.answered(answer)
        except asyncio.CancelledError:
            # It did not open in time; or the loop is ending, and not for another one to begin. One without calls may
            # only have been left hanging at its end.
            useless = self.opened is None or not self.is_over
        except grpc.RpcError as error:
            useless = self.is_useless(error.code())
        except Exception as error:
            log.debug("a session broke off: %s", error)
        finally:
            if sending:
                sending.cancel()
            self.cancel()
            self.ended(useless=useless)
            for timer in (self._timer, self._parting):
                if timer:
                    timer.cancel()


class LoopIo:
    """Calls that are awaited."""

    def __init__(self, home: Home, sessions: bool) -> None:
        self._home = home
        self._sessions = sessions
        self._lines: dict[tuple[str, Lane], Line[grpc.aio.Channel, LoopSession]] = {}
        self._is_closed = False

    async def send(self, server: Server, method: Method[Q, A], request: Q, timeout: float, metadata: Metadata) -> A:
        line = self._line(server, method.lane)
        stub = IdempotencyServiceStub(line.channel)
        try:
            with line:
                answer: A = await getattr(stub, method.name)(request, timeout=timeout, metadata=metadata)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if isinstance(task, Lasting) and not task.stopped:
                # A loop that ends has cancelled the task that grpc itself has for each call.
                code, none = grpc.StatusCode.CANCELLED, grpc.aio.Metadata()
                raise grpc.aio.AioRpcError(code, none, none, "the event loop is ending", None) from None
            raise
        return answer

    def take(
        self, server: Server, method: Method[Q, A], request: Q, timeout: float, metadata: Metadata
    ) -> Coroutine[Any, Any, v1.SessionResponse | None] | None:
        line = self._line(server, method.lane)
        session = line.session(metadata)
        if session is None:
            return None
        waiter: Waiter = asyncio.get_running_loop().create_future()
        number = session.take(method, request, timeout, waiter)
        return None if number is None else _answer(line, session, number, waiter, timeout)

    async def sleep(self, span: float, ends_at_close: bool) -> None:
        await asyncio.sleep(span)

    def _line(self, server: Server, lane: Lane) -> Line[grpc.aio.Channel, LoopSession]:
        self._home.check()
        if self._is_closed:
            raise CallError("this client is closed")
        line = self._lines.get((server.target, lane))
        if line is None:
            channel = (
                grpc.aio.insecure_channel(server.target, OPTIONS)
                if server.credentials is None
                else grpc.aio.secure_channel(server.target, server.credentials, OPTIONS)
            )
            line = self._lines[server.target, lane] = Line(channel, _start if self._sessions else None)
        return line

    async def close(self) -> None:
        self._is_closed = True
        lines, self._lines = list(self._lines.values()), {}
        ending = {session.task for line in lines for session in line.close()}
        if ending:
            _, late = await asyncio.wait(ending, timeout=CLOSING)
            for task in late:
                task.cancel()
        for line in lines:
            await line.channel.close(None)


async def _answer(
    line: Line[grpc.aio.Channel, LoopSession], session: LoopSession, number: int, waiter: Waiter, timeout: float
) -> v1.SessionResponse | None:
    def late() -> None:
        if session.forget(number, late=True) and not waiter.done():
            waiter.set_exception(out_of_time())

    timer = asyncio.get_running_loop().call_later(timeout + min(MARGIN, timeout / 4), late)
    try:
        with line:
            return await waiter
    finally:
        timer.cancel()
        session.forget(number)  # Unless it is answered, the caller gives up.


def _start(line: Line[grpc.aio.Channel, LoopSession], metadata: Metadata) -> LoopSession:
    # It outlives the caller, and is not to hold what that has in its context.
    return Context().run(LoopSession, line.channel, metadata, line.gone)
