"""How sessions open and end, against a server that does to them what the test says; and runs, against a real one."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from conftest import HANGS, Direct, Server
from sessions import ASKED, BY_SESSION, BY_UNARY, Calls, Code, Connect, Fake, asked, begun, by, failed, renewed
from test_sync import Thread, eventually

import onced
from onced import session
from onced.session import Session
from onced.transport import COMPLETE, RENEW, Lane
from onced.v1 import idempotency_service_pb2 as v1
from onced.v1 import record_pb2 as records


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
