"""Calls of a session, against a server that does to it what the test says."""

from __future__ import annotations

import threading
import time
from concurrent import futures
from typing import Any

import pytest
from conftest import HANGS
from sessions import BEGUN, BY_SESSION, BY_UNARY, Calls, Code, Connect, Fake, asked, begun, by, error, failed, renewed
from test_sync import eventually

import onced
from onced.transport import BEGIN, Lane
from onced.v1 import idempotency_service_pb2 as v1


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
