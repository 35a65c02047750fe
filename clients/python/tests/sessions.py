"""A server that does to sessions what the test says, and clients that have some."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest
from conftest import HANGS
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status
from test_sync import eventually

import onced
from onced import session
from onced.errors import CallError
from onced.session import Line, Session
from onced.transport import RENEW, Answer, Lane, Method, Patience, blocking
from onced.v1 import idempotency_service_pb2 as v1
from onced.v1 import record_pb2 as records
from onced.v1.idempotency_service_pb2_grpc import IdempotencyServiceServicer, add_IdempotencyServiceServicer_to_server

Code = grpc.StatusCode
ASKED = v1.RenewRequest(namespace="default", key="k", fencing_token=7)
BEGUN = v1.BeginRequest(namespace="default", key="k")
BY_UNARY, BY_SESSION = 11, 22


def renewed(seconds: int) -> v1.RenewResponse:
    answer = v1.RenewResponse()
    answer.lock_expires_in.FromSeconds(seconds)
    return answer


def begun(token: int) -> v1.BeginResponse:
    claim = records.Claim(fencing_token=token)
    claim.lock_ttl.FromSeconds(30)
    return v1.BeginResponse(claim=claim)


def failed(code: Code, reason: str = "", retry_after: float = 0.0, **values: str) -> Status:
    status = Status(code=code.value[0], message="no")
    if reason:
        status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain="onced.dev", metadata=values))
    if retry_after:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(int(retry_after * 1000))
        status.details.add().Pack(retry)
    return status


class Stream:
    """A session as the server has it."""

    def __init__(self, context: grpc.ServicerContext) -> None:
        self.token = dict(context.invocation_metadata()).get("authorization")
        self.asked: list[v1.SessionRequest] = []
        self.half_closed = threading.Event()
        self.lingers = False
        """Whether it does not end with its last call."""
        self.is_gone = threading.Event()
        self._answered: set[int] = set()
        self._answers: queue.SimpleQueue[v1.SessionResponse | tuple[Code, str] | None] = queue.SimpleQueue()

    def read(self, requests: Iterator[v1.SessionRequest]) -> None:
        try:
            for request in requests:
                self.asked.append(request)
        except Exception:
            self.end()  # The client is gone.
        else:
            self.half_closed.set()
            self._end_with_last()

    def _end_with_last(self) -> None:
        cancelled = {request.id for request in self.asked if request.HasField("cancel")}
        is_last = {request.id for request in self.asked} <= cancelled | self._answered
        if is_last and self.half_closed.is_set() and not self.lingers:
            self.end()

    def answer(self, number: int = -1, **answer: Any) -> None:
        """Answers a call; the last one, unless told otherwise."""
        number = self.asked[-1].id if number < 0 else number
        self._answers.put(v1.SessionResponse(id=number, **answer))
        self._answered.add(number)
        self._end_with_last()

    def end(self, code: Code | None = None, message: str = "cut") -> None:
        self._answers.put(None if code is None else (code, message))

    def answers(self, context: grpc.ServicerContext) -> Iterator[v1.SessionResponse]:
        while isinstance(answer := self._answers.get(timeout=2 * HANGS), v1.SessionResponse):
            yield answer
        if answer:
            context.abort(*answer)


class Fake(IdempotencyServiceServicer):
    """A server whose unary calls are answered at once, unless they are held, and whose sessions the test answers."""

    def __init__(self) -> None:
        self.unary: list[str] = []
        self.tokens: list[str | bytes | None] = []
        self.opened = 0
        self.streams: list[Stream] = []
        self.go = threading.Event()
        self.go.set()
        self.refusal: Status | None = None
        self.opening: Callable[[grpc.ServicerContext], object] = lambda _: None
        self._server = grpc.server(futures.ThreadPoolExecutor(64))
        add_IdempotencyServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def _called(self, name: str, context: grpc.ServicerContext) -> None:
        self.unary.append(name)
        self.tokens.append(dict(context.invocation_metadata()).get("authorization"))
        self.go.wait(HANGS)
        if self.refusal:
            details: Any = self.refusal.SerializeToString()
            context.set_trailing_metadata((("grpc-status-details-bin", details),))
            context.abort(session.CODES[self.refusal.code], self.refusal.message)

    def Begin(self, request: v1.BeginRequest, context: grpc.ServicerContext) -> v1.BeginResponse:  # noqa: N802
        self._called("Begin", context)
        return begun(BY_UNARY)

    def Renew(self, request: v1.RenewRequest, context: grpc.ServicerContext) -> v1.RenewResponse:  # noqa: N802
        self._called("Renew", context)
        return renewed(BY_UNARY)

    def Complete(self, request: v1.CompleteRequest, context: grpc.ServicerContext) -> v1.CompleteResponse:  # noqa: N802
        self._called("Complete", context)
        return v1.CompleteResponse()

    def Release(self, request: v1.ReleaseRequest, context: grpc.ServicerContext) -> v1.ReleaseResponse:  # noqa: N802
        self._called("Release", context)
        return v1.ReleaseResponse()

    def Lookup(self, request: v1.LookupRequest, context: grpc.ServicerContext) -> v1.LookupResponse:  # noqa: N802
        raise NotImplementedError

    def Watch(self, request: v1.WatchRequest, context: grpc.ServicerContext) -> Iterator[v1.WatchResponse]:  # noqa: N802
        raise NotImplementedError

    def Session(  # noqa: N802
        self, request_iterator: Iterator[v1.SessionRequest], context: grpc.ServicerContext
    ) -> Iterator[v1.SessionResponse]:
        self.opened += 1
        self.opening(context)
        stream = Stream(context)
        context.send_initial_metadata(())
        context.add_callback(stream.is_gone.set)
        self.streams.append(stream)
        threading.Thread(target=stream.read, args=(request_iterator,), daemon=True).start()
        yield from stream.answers(context)

    def stop(self) -> None:
        self.go.set()
        for stream in self.streams:
            stream.end()
        self._server.stop(None).wait()


class Calls:
    """Calls of a client, made from the thread of the test, whichever kind of client it is."""

    def __init__(self, kind: str, address: str, **settings: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._pool = futures.ThreadPoolExecutor(80)
        self.is_async = kind == "asyncio"
        self.client: Any = (
            onced.AsyncClient(address, **settings) if self.is_async else onced.Client(address, **settings)
        )

    def call(
        self, method: Method[Any, Any] = RENEW, request: Any = ASKED, total: float = 10.0, attempt: float = 10.0
    ) -> futures.Future[Answer[Any]]:
        calling = self.client._core.transport.call(method, request, Patience(total, attempt))
        if self.is_async:
            return asyncio.run_coroutine_threadsafe(calling, self._loop)
        return self._pool.submit(blocking, calling)

    def run(self, key: str, value: Any) -> futures.Future[Any]:
        if self.is_async:

            async def work(_: Any) -> Any:
                return value

            return asyncio.run_coroutine_threadsafe(self.client.once(key).run(work), self._loop)
        return self._pool.submit(self.client.once(key).run, lambda _: value)

    def line(self, lane: Lane = Lane.HOLDING) -> Line[Any, Any]:
        """The connection; the client has called one server, and by one of them."""
        return next(line for (_, its), line in self.client._io._lines.items() if its is lane)

    def stand(self, fake: Fake, method: Method[Any, Any] = RENEW, request: Any = ASKED) -> Stream:
        """Makes a call, and waits until there is a session."""
        before = len(fake.streams)
        self.call(method, request).result(HANGS)
        eventually(lambda: len(fake.streams) > before and self.stands(method.lane))
        return fake.streams[-1]

    def session(self, lane: Lane = Lane.HOLDING) -> Session[Any]:
        current: Session[Any] | None = self.line(lane)._current
        assert current is not None
        return current

    def stands(self, lane: Lane) -> bool:
        current = self.line(lane)._current
        return current is not None and current.opened is not None

    def close(self, patience: float | None = None) -> bool:
        if not self.is_async:
            return bool(self.client.close(patience))
        return bool(asyncio.run_coroutine_threadsafe(self.client.close(patience), self._loop).result(HANGS))

    def stop(self) -> None:
        assert self.close(HANGS)
        left = asyncio.run_coroutine_threadsafe(_tasks(), self._loop).result(HANGS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(HANGS)
        self._loop.close()
        self._pool.shutdown()
        assert not left
        assert not [thread.name for thread in threading.enumerate() if thread.name == "onced-session"]


async def _tasks() -> list[Any]:
    await asyncio.sleep(0.05)
    return [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


@pytest.fixture
def fake() -> Iterator[Fake]:
    server = Fake()
    yield server
    server.stop()


@pytest.fixture(params=["threads", "asyncio"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


Connect = Callable[..., Calls]


@pytest.fixture
def connect(kind: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connect]:
    """Makes clients of a kind with sessions, for which `many` calls are many."""
    made: list[Calls] = []

    def make(address: str, many: int = 1, **settings: Any) -> Calls:
        monkeypatch.setattr(session, "MANY", many)
        made.append(Calls(kind, address, **{"sessions": True, **settings}))
        return made[-1]

    yield make
    for calls in made:
        calls.stop()


@pytest.fixture
def calls(connect: Connect, fake: Fake) -> Calls:
    """Calls of which one alone is many."""
    return connect(fake.address)


def by(answer: Answer[Any]) -> int:
    return int(answer.message.lock_expires_in.seconds)


def error(call: futures.Future[Any]) -> CallError:
    failed = call.exception(HANGS)
    assert isinstance(failed, CallError), failed
    return failed


def asked(stream: Stream, count: int) -> v1.SessionRequest:
    """The request that a stream got as number `count`."""
    eventually(lambda: len(stream.asked) >= count)
    return stream.asked[count - 1]
