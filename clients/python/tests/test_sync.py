"""Runs in threads, against a real server."""

from __future__ import annotations

import pickle
import socket
import threading
import time
from typing import Any

import grpc
import pytest
from conftest import HANGS, Direct, Faults, Server, hold, lose, refuse, stall

import onced
from onced import sync
from onced.v1 import record_pb2 as records


@pytest.fixture
def client(server: str) -> Any:
    with onced.Client(server) as client:
        yield client


def eventually(condition: Any) -> None:
    """Waits until something holds."""
    end = time.monotonic() + HANGS
    while not condition():
        assert time.monotonic() < end, "this never came to be"
        time.sleep(0.02)


class Thread(threading.Thread):
    """A call of its own, whose result or error is to be asked for."""

    def __init__(self, call: Any) -> None:
        super().__init__(daemon=True)
        self._call = call
        self.outcome: Any = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.outcome = self._call()
        except BaseException as error:
            self.error = error

    def result(self) -> Any:
        self.join(HANGS)
        assert not self.is_alive(), "it hangs"
        if self.error:
            raise self.error
        return self.outcome


def test_work_runs_once_and_duplicates_get_what_it_returned(client: onced.Client, key: str) -> None:
    first = client.once(key).run(lambda claim: {"token": claim.token})
    again = client.once(key).run(lambda _: pytest.fail("it ran twice"))
    assert (first.ran_here, again.ran_here) == (True, False)
    assert again.value == first.value == {"token": first.token}
    assert (again.owner, again.attempt, again.token) == (first.owner, 1, first.token)
    assert again.expires_at is not None
    assert again.completed_at is not None
    assert again.expires_at > again.completed_at


def test_a_claim_says_what_it_is_of(client: onced.Client, key: str) -> None:
    def work(claim: onced.Claim) -> list[str]:
        assert repr(claim).startswith(f"Claim('shop/{key}', token=")
        return [claim.namespace, claim.key]

    assert client.once(key, namespace="shop").run(work).value == ["shop", key]
    assert client.once(f"{key}-2").run(lambda claim: [claim.namespace, claim.key]).value == ["default", f"{key}-2"]


def test_a_run_can_be_made_again_with_an_id_of_its_own(client: onced.Client, key: str) -> None:
    once = client.once(key)
    for _ in range(2):
        with pytest.raises(onced.WorkFailedError):
            once.run(fails)
    assert once.run(lambda claim: claim.attempt).value == 3


def fails(_: onced.Claim) -> None:
    raise RuntimeError("the card reader is away")


def test_those_who_wait_get_the_outcome(client: onced.Client, key: str) -> None:
    started, go = threading.Event(), threading.Event()
    waiting: list[records.InProgress] = []

    def work(_: onced.Claim) -> str:
        started.set()
        assert go.wait(HANGS)
        return "done"

    first = Thread(lambda: client.once(key, owner="first").run(work))
    assert started.wait(HANGS)
    others = [Thread(lambda: client.once(key, on_wait=waiting.append).run(fails)) for _ in range(3)]
    eventually(lambda: len(waiting) >= 3)
    with pytest.raises(onced.InProgressError) as held:
        client.once(key, wait=0).run(fails)
    assert (held.value.owner, held.value.attempt) == ("first", 1)
    go.set()
    assert first.result().ran_here
    assert [other.result().value for other in others] == ["done"] * 3


def test_failures_give_the_key_back_by_the_rule(client: onced.Client, direct: Direct, key: str) -> None:
    with pytest.raises(onced.WorkFailedError, match="card reader") as failed:
        client.once(key).run(fails)
    assert (failed.value.rule, failed.value.released, failed.value.lost) == ("retry", True, None)
    assert isinstance(failed.value.__cause__, RuntimeError)
    assert direct.state(key) == "available"

    def doubts(_: onced.Claim) -> None:
        raise onced.Failure("the line went dead", "in_doubt")

    with pytest.raises(onced.WorkFailedError) as failed:
        client.once(key).run(doubts)
    assert failed.value.rule == "in_doubt"
    with pytest.raises(onced.InDoubtError) as doubt:
        client.once(key).run(fails)
    assert (doubt.value.reason, doubt.value.token) == ("the line went dead", failed.value.token)


def test_a_final_error_is_everybodys(client: onced.Client, key: str) -> None:
    def work(_: onced.Claim) -> None:
        raise onced.FinalError(grpc.StatusCode.FAILED_PRECONDITION, "no funds")

    for ran_here in (True, False):
        with pytest.raises(onced.FinalError, match="no funds") as final:
            client.once(key).run(work)
        assert (final.value.code, final.value.ran_here, final.value.attempt) == (9, ran_here, 1)
        copy = pickle.loads(pickle.dumps(final.value))
        assert (str(copy), copy.code, copy.token) == ("no funds", 9, final.value.token)


def test_a_final_error_of_another_key_is_no_outcome(client: onced.Client, key: str) -> None:
    def declined(_: onced.Claim) -> None:
        raise onced.FinalError(9, "no funds")

    for _ in range(2):
        with pytest.raises(onced.WorkFailedError) as failed:
            client.once(f"{key}-outer").run(lambda _: client.once(key).run(declined))
        assert isinstance(failed.value.__cause__, onced.FinalError)


def test_what_cannot_be_stored_is_in_doubt(client: onced.Client, direct: Direct, key: str) -> None:
    for number, value in enumerate((object(), "x" * (2 << 20), float("nan"), "\ud800")):
        with pytest.raises(onced.WorkFailedError) as failed:
            client.once(f"{key}-{number}").run(lambda _, value=value: value)  # type: ignore[misc]
        assert failed.value.rule == "in_doubt"
        assert direct.state(f"{key}-{number}") == "in_doubt"


def test_codecs(client: onced.Client, direct: Direct, key: str) -> None:
    cases: list[tuple[Any, Any, bytes, str]] = [
        (onced.JSON, None, b"null", "application/json"),
        (onced.JSON, {"ä": [1]}, '{"ä":[1]}'.encode(), "application/json"),
        (onced.BYTES, b"\x00\xff", b"\x00\xff", "application/octet-stream"),
        (onced.TEXT, "zwölf", "zwölf".encode(), "text/plain; charset=utf-8"),
        (
            onced.Protobuf(records.Checkpoint),
            records.Checkpoint(sequence=3),
            b"\x08\x03",
            'application/x-protobuf; messageType="onced.v1.Checkpoint"',
        ),
    ]
    for number, (codec, value, stored, content_type) in enumerate(cases):
        name = f"{key}-{number}"
        for _ in range(2):
            assert client.once(name, codec=codec).run(lambda _, value=value: value).value == value  # type: ignore[misc]
        outcome = direct.lookup(name).completed.outcome
        assert (outcome.response, outcome.content_type) == (stored, content_type)
        wrong = onced.TEXT if codec is not onced.TEXT else onced.JSON
        with pytest.raises(onced.UnreadableError):
            client.once(name, codec=wrong).run(lambda _: pytest.fail("it ran"))


def test_another_request_under_the_same_key_is_refused(client: onced.Client, key: str) -> None:
    client.once(key, fingerprint=b"one").run(lambda _: 1)
    with pytest.raises(onced.NotBegunError) as refused:
        client.once(key, fingerprint=b"two").run(lambda _: pytest.fail("it ran"))
    assert refused.value.reason == "FINGERPRINT_MISMATCH"
    assert not refused.value.unavailable


def test_checkpoints_are_handed_over(client: onced.Client, key: str) -> None:
    def work(claim: onced.Claim) -> Any:
        if claim.attempt == 1:
            assert claim.checkpoint is None
            claim.save_checkpoint(b"half")
            raise RuntimeError("later")
        return (claim.checkpoint or b"").decode()

    with pytest.raises(onced.WorkFailedError):
        client.once(key).run(work)
    assert client.once(key).run(work).value == "half"
    with pytest.raises(LookupError):
        onced.Claim.current()


def test_a_lock_is_renewed_while_the_work_runs(client: onced.Client, direct: Direct, key: str) -> None:
    def work(claim: onced.Claim) -> str | None:
        assert claim.lock_ttl == 2.0
        assert claim.wait_lost(5.0) is None
        assert 0 < claim.lock_left() <= 2.0
        return direct.lookup(key).WhichOneof("record")

    assert client.once(key, lock_ttl=2).run(work).value == "in_progress"


def test_a_claim_that_was_taken_over_is_told_and_its_outcome_is_not_sent(
    faults: Faults, direct: Direct, key: str
) -> None:
    def work(claim: onced.Claim) -> str:
        faults.plan("Renew", refuse(grpc.StatusCode.UNAVAILABLE), times=1000)
        assert claim.wait_lost(HANGS) == "lock_ended"
        assert claim.lock_left() == 0
        eventually(lambda: direct.state(key) == "available")
        direct.claim(key)
        faults.clear()
        eventually(lambda: claim.lost == "taken_over")
        with pytest.raises(onced.ClaimLostError):
            claim.save_checkpoint(b"late")
        return "stale"

    with onced.Client(faults.address) as client:
        with pytest.raises(onced.ClaimLostError) as lost:
            client.once(key, lock_ttl=2).run(work)
        assert lost.value.lost == "taken_over"
    assert "Complete" not in faults.seen
    assert "Release" not in faults.seen


def test_a_late_outcome_is_stored_if_nobody_took_over(faults: Faults, direct: Direct, key: str) -> None:
    def work(claim: onced.Claim) -> str:
        faults.plan("Renew", refuse(grpc.StatusCode.UNAVAILABLE), times=1000)
        assert claim.wait_lost(HANGS) == "lock_ended"
        return "late"

    with onced.Client(faults.address) as client:
        assert client.once(key, lock_ttl=2).run(work).value == "late"
    assert direct.state(key) == "completed"


def test_answers_that_are_lost_are_asked_for_again(faults: Faults, key: str) -> None:
    for call in ("Begin", "Complete"):
        faults.plan(call, lose(), times=2)
    with onced.Client(faults.address) as client:
        assert client.once(key).run(lambda claim: claim.attempt).value == 1
    assert faults.seen.count("Begin") == 3
    assert faults.seen.count("Complete") == 3
    assert "Release" not in faults.seen


def test_an_outcome_that_nobody_confirms_is_never_released(faults: Faults, direct: Direct, key: str) -> None:
    faults.plan("Complete", lose(), times=1000)
    with onced.Client(faults.address, timeout=1) as client, pytest.raises(onced.NotStoredError) as lost:
        client.once(key, lock_ttl=2).run(lambda _: "value")
    assert lost.value.value == "value"
    assert lost.value.outcome.response == b'"value"'
    assert "Release" not in faults.seen
    assert direct.state(key) == "completed"


def test_pushback_is_kept_to_or_forbids_the_retry(faults: Faults, key: str) -> None:
    with onced.Client(faults.address) as client:
        faults.plan("Begin", refuse(grpc.StatusCode.UNAVAILABLE, "OVERLOADED", pushback="100"))
        faults.plan("Begin", refuse(grpc.StatusCode.UNAVAILABLE, "OVERLOADED", retry_after=0.1))
        client.once(key).run(lambda _: 1)
        assert faults.seen.count("Begin") == 3
        for forbids in ("-1", "soon"):
            faults.seen.clear()
            faults.plan("Begin", refuse(grpc.StatusCode.UNAVAILABLE, "OVERLOADED", pushback=forbids))
            with pytest.raises(onced.NotBegunError) as refused:
                client.once(key).run(lambda _: 1)
            assert refused.value.reason == "OVERLOADED"
            assert faults.seen.count("Begin") == 1


def test_the_next_server_is_tried_when_one_is_gone(own_server: Server, server: str, direct: Direct, key: str) -> None:
    own_server.kill()
    for number in range(4):
        with onced.Client(f"{own_server.address},{server}") as client:
            client.once(f"{key}-{number}").run(lambda _: 1)
        assert direct.state(f"{key}-{number}") == "completed"


def test_a_server_that_comes_back_is_found_again(key: str) -> None:
    first = Server()
    with onced.Client(first.address) as client:
        client.once(key).run(lambda _: 1)
        first.kill()
        again = Thread(lambda: client.once(f"{key}-2").run(lambda _: 2))
        second = Server(listen=first.address)
        assert again.result().value == 2
        second.kill()


def test_a_call_is_repeated_though_no_thread_is_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would see to the connection."""

    def start(*_: Any, **__: Any) -> None:
        raise RuntimeError("can't start new thread")

    server = Server()
    server.kill()
    with onced.Client(server.address, timeout=1.0) as client:
        monkeypatch.setattr("grpc._channel.Channel.subscribe", start)
        with pytest.raises(onced.NotBegunError) as failed:
            client.once("k").run(lambda _: 1)
        assert failed.value.unavailable
        assert not client._io._down


def test_many_runs_live_through_a_restart(key: str) -> None:
    """Each fails at once while there is no connection: it comes up all the same."""
    for count in range(2):
        first = Server()
        with onced.Client(first.address) as client:
            runs = [Thread(lambda name=f"{key}-{each}": client.once(name).run(lambda _: 1)) for each in range(64)]
            first.kill()
            second = Server(listen=first.address)
            ended = time.monotonic() + 10
            while any(run.is_alive() for run in runs):
                assert time.monotonic() < ended, f"no connection came up again, in round {count}"
                time.sleep(0.05)
            assert {type(run.error) for run in runs} <= {type(None), onced.ClaimLostError}
            second.kill()


def test_failing_open_is_said_everywhere_and_counted(own_server: Server, key: str) -> None:
    def work(claim: onced.Claim) -> str:
        assert (claim.protected, claim.token, claim.attempt, claim.checkpoint) == (False, 0, 0, None)
        assert (claim.namespace, claim.key, claim.lost) == ("shop", key, None)
        claim.save_checkpoint(b"nowhere")
        assert onced.Claim.current() is claim
        return "anyway"

    own_server.kill()
    with onced.Client(own_server.address, timeout=1) as client:
        done = client.once(key, namespace="shop", fail_open=0.3).run(work)
        assert (done.value, done.protected, done.token, done.ran_here) == ("anyway", False, 0, True)
        assert client.unprotected_runs == 1
        with pytest.raises(onced.WorkFailedError) as failed:
            client.once(key, fail_open=0.3).run(fails)
        assert not failed.value.released
        with pytest.raises(onced.NotBegunError) as closed:
            client.once(key).run(fails)
        assert closed.value.unavailable
        assert client.unprotected_runs == 2


def test_a_hung_server_does_not_stand_for_all_where_failing_open_is_allowed(server: str, key: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = "{}:{}".format(*mute.getsockname())
        for first in range(2):
            with onced.Client(f"{address},{server}") as client:
                client._core.transport._current = first
                assert client.once(f"{key}-{first}", fail_open=3.0).run(lambda _: 1).protected
                assert client.unprotected_runs == 0


def test_neither_a_refusal_nor_a_holder_is_an_outage(client: onced.Client, direct: Direct, key: str) -> None:
    with pytest.raises(onced.NotBegunError) as refused:
        client.once(key, namespace="NOT VALID", fail_open=0.2).run(fails)
    assert refused.value.reason == "NAMESPACE_INVALID"
    direct.claim(key)
    with pytest.raises(onced.InProgressError):
        client.once(key, wait=0, fail_open=0.2).run(fails)
    assert client.unprotected_runs == 0


def test_a_server_that_answered_otherwise_is_no_outage(faults: Faults, key: str) -> None:
    faults.plan("Begin", refuse(grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"))
    faults.plan("Begin", refuse(grpc.StatusCode.UNAVAILABLE), times=1000)
    with onced.Client(faults.address, timeout=1) as client:
        with pytest.raises(onced.NotBegunError):
            client.once(key, wait=0, fail_open=0.3).run(fails)
        assert client.unprotected_runs == 0


def test_a_lock_is_renewed_until_its_complete_is_answered(faults: Faults, direct: Direct, key: str) -> None:
    with onced.Client(faults.address) as client:
        faults.plan("Complete", stall())
        run = Thread(lambda: client.once(key, lock_ttl=2).run(lambda _: 1))
        eventually(lambda: faults.seen.count("Renew") >= 4)
        assert direct.state(key) == "in_progress"
        faults.clear()
        assert run.result().value == 1


def test_close_waits_for_work_and_its_outcome(faults: Faults, direct: Direct, key: str) -> None:
    client = onced.Client(faults.address)
    started, go = threading.Event(), threading.Event()

    def work(_: onced.Claim) -> int:
        started.set()
        assert go.wait(HANGS)
        return 1

    running = Thread(lambda: client.once(key).run(work))
    assert started.wait(HANGS)
    assert client.close(0.05) is False
    with pytest.raises(onced.NotBegunError, match="closed"):
        client.once(key).run(fails)
    closing = Thread(lambda: client.close(HANGS))
    faults.plan("Complete", hold())
    go.set()
    eventually(lambda: "Complete" in faults.seen)
    assert closing.is_alive()
    faults.clear()
    assert closing.result() is True
    assert running.result().value == 1
    assert direct.state(key) == "completed"
    assert "Release" not in faults.seen


def test_close_ends_those_who_wait_and_gives_back_what_nobody_heard_of(
    faults: Faults, direct: Direct, key: str
) -> None:
    client = onced.Client(faults.address)
    faults.plan("Begin", hold())
    running = Thread(lambda: client.once(key, lock_ttl=120).run(fails))
    eventually(lambda: direct.state(key) == "in_progress")
    assert client.close(HANGS) is True
    with pytest.raises(onced.NotBegunError, match="closed"):
        running.result()
    assert direct.state(key) == "available"
    assert faults.seen.count("Begin") == 2


def test_a_begin_whose_time_ran_out_gives_back_what_nobody_heard_of(faults: Faults, direct: Direct, key: str) -> None:
    with onced.Client(faults.address, timeout=0.2) as client:
        faults.plan("Begin", hold())
        with pytest.raises(onced.NotBegunError):
            client.once(key, wait=0.2, lock_ttl=120).run(fails)
        eventually(lambda: direct.state(key) == "available")


def test_holders_have_connections_of_their_own(faults: Faults, key: str) -> None:
    """Behind a connection that is full of waiting calls, a Complete would wait for them."""

    def work(claim: onced.Claim) -> None:
        claim.save_checkpoint(b"x")

    with onced.Client(faults.address) as client:
        client.once(key).run(work)
        client.once(f"{key}-2").run(work)
    assert len(faults.peers["Begin"]) == 1
    assert faults.peers["Renew"] == faults.peers["Complete"]
    assert not faults.peers["Begin"] & faults.peers["Complete"]


def test_an_interrupt_after_the_work_does_not_free_the_key(
    client: onced.Client, direct: Direct, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow:
        def encode(self, _: object) -> Any:
            raise KeyboardInterrupt

        def decode(self, _: object) -> Any:
            pytest.fail("nothing is stored")

    with pytest.raises(KeyboardInterrupt):
        client.once(key, codec=Slow()).run(lambda _: 1)
    eventually(lambda: direct.state(key) == "in_doubt")

    def carried_out(work: Any, claim: onced.Claim) -> Any:
        work(claim)
        raise KeyboardInterrupt

    monkeypatch.setattr(sync, "_carry_out", carried_out)
    with pytest.raises(KeyboardInterrupt):
        client.once(f"{key}-2").run(lambda _: 1)
    eventually(lambda: direct.state(f"{key}-2") == "in_doubt")


def test_async_work_is_refused_and_frees_the_key(client: onced.Client, direct: Direct, key: str) -> None:
    async def work(_: onced.Claim) -> None: ...

    with pytest.raises(onced.WorkFailedError, match="AsyncClient") as failed:
        client.once(key, on_failure="in_doubt").run(work)
    assert (failed.value.rule, failed.value.released) == ("retry", True)
    assert direct.state(key) == "available"


def test_the_decorator(client: onced.Client, key: str) -> None:
    calls: list[str] = []

    @client.idempotent(
        key=lambda name, **_: f"{key}-{name}",
        fingerprint=lambda _, amount: onced.fingerprint.of_json(amount),
        on_failure="in_doubt",
    )
    def charge(name: str, *, amount: int) -> str:
        """Charges."""
        calls.append(name)
        return f"{name}: {amount}, {onced.Claim.current().attempt}"

    assert charge("a", amount=1) == charge("a", amount=1) == "a: 1, 1"
    assert charge("b", amount=1) == "b: 1, 1"
    assert calls == ["a", "b"]
    assert charge.__doc__ == "Charges."
    with pytest.raises(onced.NotBegunError):
        charge("a", amount=2)
    with pytest.raises(TypeError, match="AsyncClient"):

        @client.idempotent(key=lambda: key)
        async def wrong() -> None: ...


def test_options_are_checked(client: onced.Client, key: str) -> None:
    with pytest.raises(TypeError, match="no such option: lockttl"):
        client.once(key, lockttl=3)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="no such setting: tls"):
        onced.Client("a:1", tls=True)  # type: ignore[call-arg]
    with pytest.raises(onced.SetupError, match="more than 0"):
        onced.Client("a:1", timeout=0)
    assert client.once(key, fail_open=0)._plan.fail_open is None
    wrong: list[dict[str, Any]] = [
        {"wait": -1},
        {"on_failure": "shrug"},
        {"on_lapse": "shrug"},
        {"lock_ttl": float("inf")},
    ]
    for options in wrong:
        with pytest.raises(onced.SetupError):
            client.once(key, **options)
    with pytest.raises(ValueError, match="1 to 16"):
        onced.FinalError(0, "fine")
