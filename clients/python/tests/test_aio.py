"""Runs in asyncio, against a real server. What needs no loop of its own is tested with threads."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from conftest import HANGS, Direct, Faults, Server, hold, refuse, stall

import onced
from onced import aio


@pytest.fixture
async def client(server: str) -> AsyncIterator[onced.AsyncClient]:
    async with onced.AsyncClient(server) as client:
        yield client


async def eventually(condition: Callable[[], bool]) -> None:
    """Waits until something holds, looking from another thread."""

    async def look() -> None:
        while not await asyncio.to_thread(condition):  # noqa: ASYNC110 - what it looks at is elsewhere
            await asyncio.sleep(0.02)

    await asyncio.wait_for(look(), HANGS)


async def fails(_: onced.AsyncClaim) -> None:
    raise RuntimeError("the card reader is away")


class Work:
    """Work that ends when it is told to."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.go = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.claim: onced.AsyncClaim | None = None

    async def __call__(self, claim: onced.AsyncClaim) -> int:
        self.claim = claim
        self.started.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return claim.attempt


class Stubborn(Work):
    """Work that does not stop when it is cancelled."""

    async def __call__(self, claim: onced.AsyncClaim) -> int:
        while True:
            try:
                return await super().__call__(claim)
            except asyncio.CancelledError:  # noqa: PERF203 - as often as it is cancelled
                pass


async def test_work_runs_once_and_duplicates_get_what_it_returned(client: onced.AsyncClient, key: str) -> None:
    work = Work()
    first = asyncio.create_task(client.once(key).run(work))
    await work.started.wait()
    others = [asyncio.create_task(client.once(key).run(fails)) for _ in range(3)]
    await asyncio.sleep(0.1)
    with pytest.raises(onced.InProgressError):
        await client.once(key, wait=0).run(fails)
    work.go.set()
    done = await first
    assert (done.value, done.ran_here) == (1, True)
    assert [(other.value, other.ran_here) for other in await asyncio.gather(*others)] == [(1, False)] * 3


async def test_failures_and_final_errors(client: onced.AsyncClient, direct: Direct, key: str) -> None:
    with pytest.raises(onced.WorkFailedError) as failed:
        await client.once(key, on_failure="in_doubt").run(fails)
    assert (failed.value.rule, failed.value.released) == ("in_doubt", True)
    assert isinstance(failed.value.__cause__, RuntimeError)
    assert direct.state(key) == "in_doubt"

    async def final(_: onced.AsyncClaim) -> None:
        raise onced.FinalError(9, "no funds")

    for ran_here in (True, False):
        with pytest.raises(onced.FinalError) as error:
            await client.once(f"{key}-final").run(final)
        assert error.value.ran_here == ran_here


async def test_a_cancelled_run_gives_the_key_back_once_its_work_has_stopped(
    client: onced.AsyncClient, direct: Direct, key: str
) -> None:
    cleaned_up = asyncio.Event()
    started = asyncio.Event()

    async def work(_: onced.AsyncClaim) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            for _times in range(10):
                await asyncio.sleep(0.02)
                assert await asyncio.to_thread(direct.state, key) == "in_progress"
            cleaned_up.set()

    run = asyncio.create_task(client.once(key, on_failure="in_doubt").run(work))
    await started.wait()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert cleaned_up.is_set()
    assert direct.state(key) == "in_doubt"


async def test_work_that_does_not_stop_keeps_its_claim_and_its_outcome_is_stored(
    client: onced.AsyncClient, direct: Direct, key: str
) -> None:
    work = Stubborn()
    run = asyncio.create_task(client.once(key, lock_ttl=2).run(work))
    await work.started.wait()
    for _ in range(3):
        run.cancel()
        await asyncio.sleep(0.05)
    await work.cancelled.wait()
    await asyncio.sleep(2.5)
    assert await asyncio.to_thread(direct.state, key) == "in_progress", "it was not renewed"
    work.go.set()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert direct.state(key) == "completed"


async def test_a_cancellation_drops_no_complete(faults: Faults, direct: Direct, key: str) -> None:
    async with onced.AsyncClient(faults.address) as client:
        work = Work()
        work.go.set()
        faults.plan("Complete", hold())
        run = asyncio.create_task(client.once(key).run(work))
        await eventually(lambda: "Complete" in faults.seen)
        run.cancel()
        run.cancel()
        await asyncio.sleep(0.05)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        faults.clear()
    assert direct.state(key) == "completed"
    assert "Release" not in faults.seen


async def test_a_begin_that_was_cancelled_gives_back_what_nobody_heard_of(
    faults: Faults, direct: Direct, key: str
) -> None:
    async with onced.AsyncClient(faults.address) as client:
        faults.plan("Begin", hold())
        run = asyncio.create_task(client.once(key, lock_ttl=120).run(fails))
        await eventually(lambda: direct.state(key) == "in_progress")
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        await eventually(lambda: direct.state(key) == "available")


async def test_lost_claims_cancel_the_work(faults: Faults, direct: Direct, key: str) -> None:
    async with onced.AsyncClient(faults.address) as client:
        faults.plan("Renew", refuse(grpc.StatusCode.UNAVAILABLE), times=1000)
        work = Work()
        run = asyncio.create_task(client.once(key, lock_ttl=2, on_failure="in_doubt").run(work))
        with pytest.raises(onced.WorkFailedError) as failed:
            await run
        assert (failed.value.lost, failed.value.rule) == ("lock_ended", "in_doubt")
        assert work.cancelled.is_set()
        assert work.claim is not None
        assert direct.state(key) == "in_doubt"


async def test_a_claim_that_was_taken_over_ends_in_claim_lost(faults: Faults, direct: Direct, key: str) -> None:
    async with onced.AsyncClient(faults.address) as client:
        faults.plan("Renew", refuse(grpc.StatusCode.UNAVAILABLE), times=1000)
        work = Work()
        run = asyncio.create_task(client.once(key, lock_ttl=2, cancel_on_lost=False).run(work))
        await work.started.wait()
        assert work.claim is not None
        assert await work.claim.wait_lost() == "lock_ended"
        await eventually(lambda: direct.state(key) == "available")
        token = await asyncio.to_thread(direct.claim, key)
        faults.clear()
        await eventually(lambda: work.claim is not None and work.claim.lost == "taken_over")
        assert not work.cancelled.is_set()
        work.go.set()
        with pytest.raises(onced.ClaimLostError):
            await run
        assert token > work.claim.token
    assert "Complete" not in faults.seen
    assert "Release" not in faults.seen


async def test_failing_open(own_server: Server, key: str) -> None:
    own_server.kill()
    async with onced.AsyncClient(own_server.address, timeout=1) as client:
        work = Work()
        work.go.set()
        done = await client.once(key, namespace="shop", fail_open=0.3).run(work)
        assert (done.value, done.protected) == (0, False)
        assert work.claim is not None
        assert (work.claim.namespace, work.claim.key) == ("shop", key)
        assert client.unprotected_runs == 1
        work.go.clear()
        run = asyncio.create_task(client.once(key, fail_open=0.3).run(work))
        await eventually(lambda: client.unprotected_runs == 2)
        await asyncio.sleep(0.05)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run


async def test_a_hung_server_does_not_stand_for_all_where_failing_open_is_allowed(server: str, key: str) -> None:
    """One that takes connections and says nothing gets its share of the time, and no more."""
    mute = socket.create_server(("127.0.0.1", 0))
    address = "{}:{}".format(*mute.getsockname())
    for first in range(2):
        async with onced.AsyncClient(f"{address},{server}") as client:
            client._core.transport._current = first
            work = Work()
            work.go.set()
            assert (await client.once(f"{key}-{first}", fail_open=3.0).run(work)).protected
            assert client.unprotected_runs == 0
    mute.close()


async def test_close_waits_for_work_and_ends_those_who_wait(server: str, direct: Direct, key: str) -> None:
    client = onced.AsyncClient(server)
    work = Work()
    run = asyncio.create_task(client.once(key).run(work))
    await work.started.wait()
    waiting = asyncio.create_task(client.once(key, wait=None).run(fails))
    await asyncio.sleep(0.1)
    assert await client.close(0.05) is False
    with pytest.raises(onced.NotBegunError, match="closed"):
        await waiting
    with pytest.raises(onced.NotBegunError, match="closed"):
        await client.once(key).run(fails)
    closing = asyncio.create_task(client.close(HANGS))
    await asyncio.sleep(0.05)
    assert not closing.done()
    work.go.set()
    assert (await run).value == 1
    assert await closing is True
    assert direct.state(key) == "completed"


async def test_a_client_that_was_never_used_can_be_closed() -> None:
    assert await onced.AsyncClient("127.0.0.1:1").close()


def test_a_client_belongs_to_one_loop(server: str, key: str) -> None:
    client = onced.AsyncClient(server)

    async def once() -> None:
        work = Work()
        work.go.set()
        assert (await client.once(key).run(work)).value == 1

    async def close() -> None:
        assert await client.close()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(once())
    with pytest.raises(onced.SetupError, match="another event loop"):
        asyncio.run(once())
    loop.run_until_complete(close())
    loop.close()


ENDING_LOOP = """
import asyncio, sys
import onced

async def work(claim):
    print("started", flush=True)
    if sys.argv[3] != "waits":
        return 7
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0.2)
        print("cleaned up", flush=True)

async def main():
    client = onced.AsyncClient(sys.argv[1])
    run = asyncio.create_task(client.once(sys.argv[2], lock_ttl=120, on_failure="in_doubt").run(work))
    await asyncio.to_thread(sys.stdin.readline)

asyncio.run(main())
"""


@pytest.mark.parametrize(("how", "state"), [("returns", "completed"), ("retries", "completed"), ("waits", "in_doubt")])
def test_a_loop_that_ends_drops_neither_outcome_nor_release(
    faults: Faults, direct: Direct, key: str, how: str, state: str
) -> None:
    """`asyncio.run` cancels all tasks when its main one has ended, and waits for them."""
    if how != "waits":
        # Its end comes while a call is under way, or between two of them.
        later = refuse(grpc.StatusCode.UNAVAILABLE, "OVERLOADED", pushback="500")
        faults.plan("Complete", stall() if how == "returns" else later)
    process = subprocess.Popen(
        [sys.executable, "-c", ENDING_LOOP, faults.address, key, how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        while how != "waits" and "Complete" not in faults.seen:
            time.sleep(0.01)
        time.sleep(0.1)
        process.stdin.write("end\n")
        process.stdin.flush()
        assert process.stdout.read() == ("cleaned up\n" if how == "waits" else "")
        assert process.wait(HANGS) == 0
    faults.clear()
    assert direct.state(key) == state


async def test_work_that_is_not_async_has_run(client: onced.AsyncClient, key: str) -> None:
    for ran_here in (True, False):
        done = await client.once(key).run(lambda claim: claim.attempt)  # type: ignore[arg-type, return-value]
        assert (done.value, done.ran_here) == (1, ran_here)


async def test_a_thread_outlasts_a_cancellation(client: onced.AsyncClient, direct: Direct, key: str) -> None:
    started, go = threading.Event(), threading.Event()

    def work() -> int:
        started.set()
        assert go.wait(HANGS)
        return onced.AsyncClaim.current().attempt

    run = asyncio.create_task(client.once(key).run(lambda _: onced.to_thread(work)))
    await eventually(started.is_set)
    for _ in range(2):
        run.cancel()
        await asyncio.sleep(0.1)
    assert await asyncio.to_thread(direct.state, key) == "in_progress"
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert direct.state(key) == "completed"


async def test_the_decorator(client: onced.AsyncClient, key: str) -> None:
    calls: list[str] = []

    @client.idempotent(key=lambda name: f"{key}-{name}", fingerprint=onced.fingerprint.of_json)
    async def charge(name: str) -> str:
        calls.append(name)
        return f"{name}: {onced.AsyncClaim.current().attempt}"

    assert await charge("a") == await charge("a") == "a: 1"
    assert calls == ["a"]
    with pytest.raises(TypeError, match="not async"):
        client.idempotent(key=str)(str)  # type: ignore[arg-type]


async def test_checkpoints(client: onced.AsyncClient, key: str) -> None:
    async def work(claim: onced.AsyncClaim) -> Any:
        if claim.attempt == 1:
            await claim.save_checkpoint(b"half")
            with pytest.raises(onced.CallError) as refused:
                await claim.save_checkpoint(b"x" * (1 << 17))
            assert refused.value.reason == "CHECKPOINT_TOO_LARGE"
            raise RuntimeError
        return (claim.checkpoint or b"").decode()

    with pytest.raises(onced.WorkFailedError):
        await client.once(key).run(work)
    assert (await client.once(key).run(work)).value == "half"


async def test_holders_have_connections_of_their_own(faults: Faults, key: str) -> None:
    async with onced.AsyncClient(faults.address) as client:
        for number in range(2):
            work = Work()
            work.go.set()
            await client.once(f"{key}-{number}").run(work)
    assert len(faults.peers["Begin"]) == len(faults.peers["Complete"]) == 1
    assert faults.peers["Begin"] != faults.peers["Complete"]


async def test_a_lock_is_renewed_until_its_complete_is_answered(faults: Faults, direct: Direct, key: str) -> None:
    async with onced.AsyncClient(faults.address) as client:
        work = Work()
        work.go.set()
        faults.plan("Complete", stall())
        run = asyncio.create_task(client.once(key, lock_ttl=2).run(work))
        await eventually(lambda: faults.seen.count("Renew") >= 4)
        assert await asyncio.to_thread(direct.state, key) == "in_progress"
        faults.clear()
        assert (await run).value == 1


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 does not tell whether a task is being cancelled")
async def test_work_that_a_loop_cancels_as_well_may_clean_up() -> None:
    cleaned_up = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.05)
            cleaned_up.set()

    task = asyncio.create_task(work())
    waiting = asyncio.create_task(aio._outlast(task))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0.01)
    waiting.cancel()
    assert isinstance(await waiting, asyncio.CancelledError)
    assert cleaned_up.is_set()
