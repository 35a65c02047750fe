"""Many calls on one stream, against a server that does to it what the test says; and against a real one."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest
from conftest import HANGS, Direct, Server
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status
from test_sync import Thread, eventually

import onced
from onced import session
from onced.errors import CallError
from onced.session import Line, Session
from onced.transport import BEGIN, COMPLETE, RENEW, Answer, Lane, Method, Patience, blocking
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


def test_a_session_opens_behind_16_calls_and_no_call_waits_for_it(connect: Connect, fake: Fake) -> None:
    held = threading.Event()
    fake.opening = lambda _: held.wait(HANGS)
    fake.go.clear()
    calls = connect(fake.address, many=16)
    first = [calls.call() for _ in range(15)]
    eventually(lambda: len(fake.unary) == 15)
    time.sleep(0.1)
    assert fake.opened == 0
    first.append(calls.call())
    eventually(lambda: fake.opened == 1)
    first.append(calls.call())
    eventually(lambda: len(fake.unary) == 17)
    held.set()
    eventually(lambda: calls.stands(Lane.HOLDING))
    later = calls.call()
    assert asked(fake.streams[0], 1).HasField("renew")
    fake.streams[0].answer(renew=renewed(BY_SESSION))
    assert by(later.result(HANGS)) == BY_SESSION
    fake.go.set()
    assert {by(call.result(HANGS)) for call in first} == {BY_UNARY}
    assert fake.opened == 1


def test_each_connection_has_a_session_of_its_own(calls: Calls, fake: Fake) -> None:
    holding = calls.stand(fake)
    waiting = calls.stand(fake, BEGIN, BEGUN)
    begin, renew = calls.call(BEGIN, BEGUN), calls.call()
    assert asked(waiting, 1).HasField("begin")
    assert asked(holding, 1).HasField("renew")
    waiting.answer(begin=v1.BeginResponse())
    holding.answer(renew=renewed(BY_SESSION))
    assert begin.result(HANGS).message == v1.BeginResponse()
    assert by(renew.result(HANGS)) == BY_SESSION


def test_answers_come_in_any_order_and_one_to_nobody_is_dropped(calls: Calls, fake: Fake) -> None:
    stream = calls.stand(fake)
    running = [calls.call() for _ in range(8)]
    asked(stream, 8)
    numbers = [request.id for request in stream.asked]
    assert len(set(numbers)) == 8
    assert all(9 <= request.timeout.seconds <= 10 for request in stream.asked)
    for number in (999, 0, *reversed(numbers), *numbers):
        stream.answer(number, renew=renewed(number))
    assert sorted(by(call.result(HANGS)) for call in running) == sorted(numbers)


def test_an_answer_that_says_nothing_known_cannot_be_read(calls: Calls, fake: Fake) -> None:
    stream = calls.stand(fake)
    answers: list[dict[str, Any]] = [{}, {"begin": v1.BeginResponse()}]
    for count, answer in enumerate(answers, 1):
        call = calls.call()
        asked(stream, count)
        stream.answer(**answer)
        told = error(call)
        assert (told.code, told.reason, told.unavailable, told.unsettled) == (Code.INTERNAL, None, False, True)
        assert "cannot be read" in str(told)


def test_an_error_in_a_session_counts_as_that_of_a_unary_call(calls: Calls, fake: Fake) -> None:
    stream = calls.stand(fake)
    call = calls.call()
    asked(stream, 1)
    stream.answer(error=failed(Code.ABORTED, "CLAIM_LOST"))
    assert (error(call).code, error(call).is_claim_lost) == (Code.ABORTED, True)
    began = time.monotonic()
    call = calls.call()
    asked(stream, 2)
    stream.answer(error=failed(Code.UNAVAILABLE, "OVERLOADED", retry_after=0.5))
    asked(stream, 3)
    assert time.monotonic() - began >= 0.5
    stream.answer(renew=renewed(BY_SESSION))
    assert by(call.result(HANGS)) == BY_SESSION
    assert fake.unary == ["Renew"]


@pytest.mark.parametrize("code", [None, Code.UNAVAILABLE, Code.INTERNAL, Code.PERMISSION_DENIED])
def test_calls_of_a_session_that_ended_are_made_again_at_once(calls: Calls, fake: Fake, code: Code | None) -> None:
    stream = calls.stand(fake)
    running = [calls.call() for _ in range(4)]
    asked(stream, 4)
    time.sleep(0.3)
    ended = calls.client._core.transport.clock()
    stream.end(code)
    answers = [call.result(HANGS) for call in running]
    assert [by(answer) for answer in answers] == [BY_UNARY] * 4
    # A lock counts from the call that was answered, not from the one that may have been lost.
    assert all(ended <= answer.sent < ended + 2 for answer in answers)


def test_what_a_session_did_not_answer_may_have_been_carried_out(calls: Calls, fake: Fake) -> None:
    stream = calls.stand(fake, BEGIN, BEGUN)
    call = calls.call(BEGIN, BEGUN)
    asked(stream, 1)
    fake.refusal = failed(Code.PERMISSION_DENIED, "ACCESS_DENIED")
    stream.end(Code.UNAVAILABLE)
    assert error(call).reason == "ACCESS_DENIED"
    assert error(call).unsettled


def test_a_call_that_is_made_again_has_what_is_left_of_its_attempt(calls: Calls, fake: Fake) -> None:
    stream = calls.stand(fake)
    began = time.monotonic()
    call = calls.call(total=3.0, attempt=3.0)
    asked(stream, 1)
    fake.go.clear()
    time.sleep(2)
    stream.end()
    assert error(call).code is Code.DEADLINE_EXCEEDED
    # With the whole of it again it would take 5 s.
    assert 2.9 < time.monotonic() - began < 4.9


@pytest.mark.parametrize("reason", ["DRAINING", "CREDENTIALS_EXPIRED", "CREDENTIALS_INVALID"])
def test_a_session_that_says_farewell_takes_no_more_and_ends_with_its_last_call(
    calls: Calls, fake: Fake, reason: str
) -> None:
    stream = calls.stand(fake)
    left, told = calls.call(), calls.call()
    asked(stream, 2)
    code = Code.UNAVAILABLE if reason == "DRAINING" else Code.UNAUTHENTICATED
    fake.opening = lambda context: context.abort(Code.UNAVAILABLE, "it drains")
    stream.answer(stream.asked[1].id, error=failed(code, reason))
    first = futures.wait([left, told], HANGS, return_when=futures.FIRST_COMPLETED).done.pop()
    assert by(first.result()) == BY_UNARY
    assert by(calls.call().result(HANGS)) == BY_UNARY
    assert len(stream.asked) == 2
    assert not stream.half_closed.is_set()
    stream.answer(stream.asked[0].id, renew=renewed(BY_SESSION))
    assert {by(left.result(HANGS)), by(told.result(HANGS))} == {BY_UNARY, BY_SESSION}
    assert stream.half_closed.wait(HANGS)


@pytest.mark.parametrize(
    ("code", "reason", "answered"),
    [(Code.UNAVAILABLE, "DRAINING", False), (Code.UNAUTHENTICATED, "CREDENTIALS_EXPIRED", True)],
)
def test_only_refused_credentials_of_a_session_forbid_failing_open(
    calls: Calls, fake: Fake, code: Code, reason: str, *, answered: bool
) -> None:
    stream = calls.stand(fake, BEGIN, BEGUN)
    fake.refusal = failed(Code.UNAVAILABLE, "DRAINING", retry_after=60)
    call = calls.call(BEGIN, BEGUN, total=2.0)
    asked(stream, 1)
    stream.answer(error=failed(code, reason))
    told = error(call)
    assert (told.unavailable, told.answered, told.unsettled) == (True, answered, False)
    assert fake.unary == ["Begin", "Begin"]


def test_a_session_that_is_full_goes_on_without_the_call(calls: Calls, fake: Fake) -> None:
    stream = calls.stand(fake, BEGIN, BEGUN)
    call = calls.call(BEGIN, BEGUN)
    asked(stream, 1)
    fake.refusal = failed(Code.PERMISSION_DENIED, "ACCESS_DENIED")
    # It is no other call's matter how long a session is full, nor this one's, which goes elsewhere.
    full = failed(Code.UNAVAILABLE, "OVERLOADED", retry_after=60, limit="max_session_calls")
    stream.answer(error=full)
    assert (error(call).reason, error(call).unsettled) == ("ACCESS_DENIED", False)
    assert fake.unary == ["Begin", "Begin"]
    call = calls.call(BEGIN, BEGUN)
    asked(stream, 2)
    stream.answer(begin=begun(BY_SESSION))
    assert call.result(HANGS).message.claim.fencing_token == BY_SESSION


def test_a_deadline_that_a_session_answers_is_silence(calls: Calls, fake: Fake) -> None:
    stream = calls.stand(fake, BEGIN, BEGUN)
    call = calls.call(BEGIN, BEGUN, total=10.0)
    asked(stream, 1)
    stream.answer(error=failed(Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", retry_after=60))
    asked(stream, 2)
    stream.answer(error=failed(Code.UNAVAILABLE, "OVERLOADED", retry_after=60))
    told = error(call)
    assert (told.reason, told.unavailable, told.answered, told.unsettled) == ("OVERLOADED", True, False, True)


def test_a_session_that_falls_silent_takes_no_more_calls(calls: Calls, fake: Fake) -> None:
    stream = calls.stand(fake)
    left = calls.call()
    asked(stream, 1)
    late = calls.call(total=0.5, attempt=0.5)
    assert error(late).unsettled
    assert by(calls.call().result(HANGS)) == BY_UNARY
    assert not stream.half_closed.is_set()
    stream.answer(stream.asked[0].id, renew=renewed(BY_SESSION))
    assert by(left.result(HANGS)) == BY_SESSION
    # Its server was only slow, and sees a session that ends as it should.
    assert stream.half_closed.wait(HANGS)
    assert len(stream.asked) == 3


def test_a_session_that_nobody_ends_is_cut_off(calls: Calls, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    for io in ("sync_io", "aio_io"):
        monkeypatch.setattr(f"onced.{io}.PARTING", 0.2)
    stream = calls.stand(fake)
    stream.lingers = True
    assert error(calls.call(total=0.3, attempt=0.3)).unsettled
    assert stream.is_gone.wait(HANGS)
    assert stream.half_closed.is_set()
    eventually(lambda: calls.line()._all == [])
    # That says nothing of the next one.
    assert calls.line()._not_before == 0
    assert calls.stand(fake) is not stream


@pytest.mark.parametrize("kind", ["threads"])
def test_a_call_that_is_taken_back_when_its_time_is_up_says_so(
    calls: Calls, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls.stand(fake, BEGIN, BEGUN)

    def forget(number: int, *, late: bool = False) -> bool:
        """Its answer is there, and about to be told."""
        calls.client._io.take_back()
        return False

    monkeypatch.setattr(calls.session(Lane.WAITING), "forget", forget)
    call = calls.call(BEGIN, BEGUN, total=0.2, attempt=0.2)
    assert isinstance(call.exception(HANGS), onced.NotBegunError)
    monkeypatch.undo()


def test_a_call_that_is_not_answered_is_taken_back_a_little_after_its_time(calls: Calls, fake: Fake) -> None:
    stream = calls.stand(fake)
    began = time.monotonic()
    call = calls.call(total=1.0, attempt=1.0)
    number = asked(stream, 1).id
    other = calls.call()
    asked(stream, 2)
    stream.answer(renew=renewed(4))  # The session goes on then.
    assert by(other.result(HANGS)) == 4
    told = error(call)
    assert time.monotonic() - began >= 1.2
    assert (told.unavailable, told.unsettled, told.answered) == (True, True, False)
    assert asked(stream, 3) == v1.SessionRequest(id=number, cancel=v1.CancelCall())
    stream.answer(number, renew=renewed(BY_SESSION))  # Too late.
    later = calls.call()
    asked(stream, 4)
    stream.answer(renew=renewed(5))
    assert by(later.result(HANGS)) == 5
    assert not calls.session()._open
    assert not calls.session()._outgoing


def test_a_caller_that_gives_up_takes_its_call_back(calls: Calls, fake: Fake) -> None:
    stream = calls.stand(fake, BEGIN, BEGUN)
    call = calls.call(BEGIN, BEGUN)
    number = asked(stream, 1).id
    waiting = calls.session(Lane.WAITING)
    if calls.is_async:
        call.cancel()
    else:
        calls.client._life.closing.set()
        calls.client._io.take_back()
        assert isinstance(call.exception(HANGS), onced.NotBegunError)
    assert asked(stream, 2) == v1.SessionRequest(id=number, cancel=v1.CancelCall())
    assert not waiting._open


def test_a_client_that_is_closed_waits_for_completes_and_leaves_nothing(calls: Calls, fake: Fake) -> None:
    stream = calls.stand(fake, COMPLETE, v1.CompleteRequest())
    done = calls.run("k", 1)
    assert asked(stream, 1).HasField("complete")
    closing = Thread(calls.close)
    time.sleep(0.2)
    assert closing.is_alive()
    stream.answer(complete=v1.CompleteResponse(completed=records.Completed(fencing_token=3)))
    assert done.result(HANGS).token == 3
    assert closing.result() is True
    assert stream.half_closed.wait(HANGS)


def test_an_idle_session_is_ended_and_may_come_again(calls: Calls, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "SHORT", 0.0)
    monkeypatch.setattr(session, "IDLE", 0.4)
    monkeypatch.setattr(session, "OPENING", 1.0)  # In asyncio it looks no sooner.
    stream = calls.stand(fake)
    for count in (1, 2, 3):  # One that has calls is not idle, however long they take.
        call = calls.call()
        asked(stream, count)
        time.sleep(0.25 if count > 1 else 0.6)
        stream.answer(renew=renewed(BY_SESSION))
        assert by(call.result(HANGS)) == BY_SESSION
    assert not stream.half_closed.is_set()
    assert stream.half_closed.wait(HANGS)
    eventually(lambda: calls.line()._current is None)
    assert calls.stand(fake) is not stream


def test_a_session_that_cannot_be_opened_is_not_tried_again_for_long(
    calls: Calls, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "OPENING", 0.3)
    monkeypatch.setattr(session, "REST", 2.0)
    hangs = threading.Event()
    for opening in (
        lambda context: context.abort(Code.UNIMPLEMENTED, "no such method"),
        lambda context: hangs.wait(HANGS),
    ):
        fake.opening, before = opening, fake.opened
        assert by(calls.call().result(HANGS)) == BY_UNARY
        eventually(lambda before=before: fake.opened == before + 1 and calls.line()._current is None)
        for _ in range(3):
            assert by(calls.call().result(HANGS)) == BY_UNARY
            time.sleep(0.1)
        assert fake.opened == before + 1
        time.sleep(2)
    hangs.set()
    fake.opening = lambda _: None
    calls.stand(fake)


def test_a_session_whose_server_was_away_is_tried_again_soon(calls: Calls, fake: Fake) -> None:
    fake.opening = lambda context: context.abort(Code.UNAVAILABLE, "away")
    assert by(calls.call().result(HANGS)) == BY_UNARY
    eventually(lambda: calls.line()._not_before > 0)
    assert calls.line()._not_before <= time.monotonic() + session.SHORT
    fake.opening = lambda _: None
    eventually(lambda: calls.call().result(HANGS) and calls.line()._current is not None)


def test_a_session_that_is_cut_short_three_times_is_given_a_rest(calls: Calls, fake: Fake) -> None:
    for count in (1, 2, 3):
        calls.stand(fake).end(Code.UNAVAILABLE)
        eventually(lambda: calls.line()._current is None)
        assert fake.opened == count
    assert by(calls.call().result(HANGS)) == BY_UNARY
    assert calls.line()._not_before > time.monotonic() + session.REST / 2
    assert fake.opened == 3


def test_what_is_large_or_too_many_goes_by_itself(calls: Calls, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "MOST_OPEN", 2)
    stream = calls.stand(fake)
    large = v1.RenewRequest(checkpoint=records.Checkpoint(data=b"x" * session.LARGEST))
    assert by(calls.call(RENEW, large).result(HANGS)) == BY_UNARY
    open_calls = [calls.call(), calls.call()]
    asked(stream, 2)
    assert by(calls.call().result(HANGS)) == BY_UNARY
    for request in list(stream.asked):
        stream.answer(request.id, renew=renewed(BY_SESSION))
    assert [by(call.result(HANGS)) for call in open_calls] == [BY_SESSION] * 2


def test_what_is_given_up_before_it_was_sent_leaves_nothing_to_send() -> None:
    class Stuck(Session[Any]):
        def tell(self, waiter: Any, answer: v1.SessionResponse | None) -> None: ...
        def wake(self) -> None: ...
        def cancel(self) -> None: ...

    stuck = Stuck(lambda *_: None)
    stuck.stands()
    for _ in range(3):
        numbers = [stuck.take(RENEW, ASKED, 1.0, object()) for _ in range(600)]
        taken = [number for number in numbers if number]
        assert len(taken) == 512
        assert all(stuck.forget(number) for number in taken)
        assert not any(stuck.forget(number) for number in taken)
        assert not stuck._outgoing
    number = stuck.take(RENEW, ASKED, 1.0, object())
    assert stuck.next()
    assert number
    assert stuck.forget(number)
    assert stuck.next() == v1.SessionRequest(id=number, cancel=v1.CancelCall())
    assert stuck.next() is None


def test_what_is_made_again_shows_the_token_of_that_time(
    connect: Connect, fake: Fake, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onced.access.TOKEN_AGE", 0.0)
    file = tmp_path / "token"
    file.write_text("one")
    calls = connect(fake.address, token_file=file)
    stream = calls.stand(fake)
    assert stream.token == "Bearer one"
    call = calls.call()
    asked(stream, 1)
    file.write_text("two")
    stream.answer(error=failed(Code.UNAUTHENTICATED, "CREDENTIALS_EXPIRED"))
    assert by(call.result(HANGS)) == BY_UNARY
    assert fake.tokens == ["Bearer one", "Bearer two"]


def test_there_are_no_sessions_unless_they_are_asked_for(kind: str, fake: Fake) -> None:
    calls = Calls(kind, fake.address)
    fake.go.clear()
    running = [calls.call() for _ in range(2 * session.MANY)]
    eventually(lambda: len(fake.unary) == 2 * session.MANY)
    fake.go.set()
    assert {by(call.result(HANGS)) for call in running} == {BY_UNARY}
    assert by(calls.call().result(HANGS)) == BY_UNARY
    assert fake.opened == 0
    calls.stop()


def test_runs_go_by_sessions_and_on_without_them_when_their_server_is_killed(connect: Connect, key: str) -> None:
    first = Server()
    calls = connect(first.address, many=2)
    for count in range(3):
        runs = [calls.run(f"{key}-{count}-{each}", each) for each in range(64)]
        assert [run.result(HANGS).value for run in runs] == list(range(64))
    eventually(lambda: all(calls.stands(lane) for lane in Lane))
    runs = [calls.run(f"{key}-more-{each}", each) for each in range(64)]
    first.kill()
    second = Server(listen=first.address)
    try:
        # The records of this store are gone with it: of some runs the claim is as well.
        errors = [run.exception(HANGS) for run in runs]
        assert [error for error in errors if error and not isinstance(error, onced.ClaimLostError)] == []
    finally:
        second.kill()


def test_duplicates_that_wait_in_a_session_get_what_the_first_returned(
    connect: Connect, server: str, direct: Direct, key: str
) -> None:
    calls = connect(server)
    assert calls.run(f"{key}-first", 0).result(HANGS).value == 0
    eventually(lambda: calls.stands(Lane.WAITING))
    token = direct.claim(key)
    runs = [calls.run(key, each) for each in range(40)]
    eventually(lambda: len(calls.session(Lane.WAITING)._open) == 40)
    direct.complete(key, token, records.Outcome(response=b"7", content_type="application/json"))
    assert {run.result(HANGS).value for run in runs} == {7}


def test_a_loop_that_ends_drops_no_complete_of_a_session(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "MANY", 1)

    async def until(condition: Callable[[], Any]) -> None:
        await asyncio.to_thread(eventually, condition)

    async def main() -> None:
        client = onced.AsyncClient(fake.address, sessions=True)

        async def work(_: Any) -> int:
            return 1

        await client.once("k").run(work)
        lines = list(client._io._lines.values())
        await until(lambda: len(fake.streams) == 2 and all(line._current and line._current.opened for line in lines))
        run = asyncio.ensure_future(client.once("k").run(work))
        await until(lambda: any(stream.asked for stream in fake.streams))
        next(stream for stream in fake.streams if stream.asked).answer(begin=begun(5))
        await until(lambda: all(stream.asked for stream in fake.streams))
        assert not run.done()

    asyncio.run(main())
    assert fake.unary == ["Begin", "Complete", "Complete"]
