"""A lock, on a clock that the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, cast

import grpc
import pytest
from test_retry import Failed, refused
from test_transport import Network

from onced.access import Access
from onced.aio import AsyncClaim
from onced.claim import BaseClaim, Held
from onced.clock import LargerElapsed, system_clock
from onced.core import head
from onced.errors import ClaimLostError, SetupError
from onced.process import Home
from onced.sync import Claim
from onced.transport import Transport, blocking
from onced.v1 import idempotency_service_pb2 as v1
from onced.v1 import record_pb2 as records

BEGUN = v1.BeginRequest(namespace="n", key="k")


class Holders(Network):
    """As it is for holders: nothing of theirs ends when the client is closed."""

    async def sleep(self, span: float, ends_at_close: bool) -> None:
        assert not ends_at_close
        await super().sleep(span, True)


def held(network: Network) -> Held:
    """A claim of 10 s, sent at 100 s, that the server had for 3 s before it armed the lock."""
    claim = records.Claim(fencing_token=5, attempt=2, max_outcome_bytes=100)
    claim.lock_ttl.FromSeconds(10)
    claim.waited.FromSeconds(3)
    claim.checkpoint.CopyFrom(records.Checkpoint(sequence=7, data=b"half"))
    transport = Transport("a:1", Access(), lambda: network.now, cast(Any, network))
    return Held(transport, BEGUN, claim, 100.0)


def test_a_lock_ends_at_sent_plus_waited_plus_ttl() -> None:
    network = Holders(None)
    claim = held(network)
    told: list[int] = []
    claim.tell = lambda: told.append(1)
    network.now = 112.0
    assert claim.look() is None
    assert claim.left() == 1.0
    network.now = 113.0
    assert claim.look() == "lock_ended"
    assert claim.left() == 0.0
    claim.let_go()
    assert claim.look() == "given_back"
    assert told == [1]


class Stop(Exception):
    """Enough was seen."""


def keep(network: Network, claim: Held, until: float) -> None:
    def rest(span: float) -> Awaitable[None]:
        network.now += span
        if network.now >= until:
            raise Stop
        return network.sleep(0, False)

    blocking(claim.keep(rest))


def renewed(seconds: int) -> v1.RenewResponse:
    answer = v1.RenewResponse()
    answer.lock_expires_in.FromSeconds(seconds)
    return answer


def test_a_lock_is_renewed_after_a_fifth_to_two_fifths_of_its_ttl() -> None:
    for _ in range(20):
        network = Holders(renewed(10))
        network.now = 103.0
        claim = held(network)
        sent: list[float] = []
        send = network.send

        async def noted(*arguments: Any, sent: list[float] = sent, send: Any = send, network: Any = network) -> Any:
            sent.append(network.now)
            return await send(*arguments)

        network.send = noted  # type: ignore[method-assign,assignment]
        with pytest.raises(Stop):
            keep(network, claim, 140.0)
        gaps = [later - earlier for earlier, later in zip([103.0, *sent], sent, strict=False)]
        assert all(2.0 <= gap <= 4.001 for gap in gaps), gaps
        assert network.timeouts == [2.5] * len(sent)
        assert claim.look() is None


def test_a_renewal_that_failed_is_tried_again_and_goes_on_after_the_lock_has_ended() -> None:
    network = Holders(Failed(grpc.StatusCode.UNAVAILABLE, "Socket closed"))
    claim = held(network)
    network.now = 103.0
    with pytest.raises(Stop):
        keep(network, claim, 130.0)
    assert claim.look() == "lock_ended"
    network.answers = [renewed(10)]
    with pytest.raises(Stop):
        keep(network, claim, 160.0)
    assert claim.look() == "lock_ended", "the work was told, and is not told otherwise"


def test_a_claim_that_was_taken_over_is_not_renewed_any_more() -> None:
    for reason in ("CLAIM_LOST", "RECORD_NOT_FOUND"):
        network = Holders(refused(grpc.StatusCode.ABORTED, reason))
        claim = held(network)
        keep(network, claim, 1000.0)
        assert claim.look() == "taken_over"
        claim.let_go()
        assert claim.look() == "taken_over"
        with pytest.raises(ClaimLostError):
            blocking(claim.save(b"x", 1.0))


def test_checkpoints_count_on_from_the_one_that_was_handed_over() -> None:
    network = Holders(renewed(10))
    claim = held(network)
    saved: list[records.Checkpoint] = []
    send = network.send

    async def noted(server: Any, method: Any, request: Any, timeout: float, metadata: Any) -> Any:
        saved.append(request.checkpoint)
        return await send(server, method, request, timeout, metadata)

    network.send = noted  # type: ignore[method-assign]
    assert claim.checkpoint == b"half"
    network.now = 108.0
    blocking(claim.save(b"more", 30.0))
    blocking(claim.save(b"most", 30.0))
    assert [(point.sequence, point.data) for point in saved] == [(8, b"more"), (9, b"most")]
    assert claim.left() == 10.0


def test_a_forked_process_saves_no_checkpoint() -> None:
    """It is stopped before the lock that another thread may have had at the fork."""
    home = Home()
    home._process = -1
    network = Holders(renewed(10))
    ours = held(network)

    async def save() -> None:
        await AsyncClaim(BEGUN, ours, 30.0, home).save_checkpoint(b"x")

    async def wait_lost() -> None:
        await AsyncClaim(BEGUN, ours, 30.0, home).wait_lost()

    with pytest.raises(SetupError, match="forked"):
        Claim(BEGUN, ours, 30.0, home).save_checkpoint(b"x")
    with pytest.raises(SetupError, match="forked"):
        asyncio.run(save())
    with pytest.raises(SetupError, match="forked"):
        Claim(BEGUN, ours, 30.0, home).wait_lost()
    with pytest.raises(SetupError, match="forked"):
        asyncio.run(wait_lost())
    assert ours._sequence == 7
    assert not network.asked


def test_a_forked_process_may_look_at_a_claim() -> None:
    """Whatever another thread had locked at the fork."""
    home, network = Home(), Holders(renewed(10))
    ours = held(network)
    network.now = 108.0
    claim = BaseClaim(BEGUN, ours, home)
    home._process = -1
    with ours._mutex:
        assert (claim.lost, claim.lock_left()) == (None, 5.0)
        network.now = 113.0
        assert (claim.lost, claim.lock_left()) == ("lock_ended", 0.0)
        assert repr(claim) == "BaseClaim('n/k', token=5, attempt=2, lost='lock_ended')"


def test_reasons_are_cut_between_characters() -> None:
    assert head("aöö", 4) == "aö"
    assert head("short", 1024) == "short"
    assert head("\ud800", 1024) == "?"


def test_a_clock_without_boottime_is_the_larger_of_two_and_never_goes_back() -> None:
    now = {"monotonic": 5.0, "wall": 1000.0}
    clock = LargerElapsed(lambda: now["monotonic"], lambda: now["wall"])
    now.update(monotonic=6.0, wall=1001.0)
    assert clock() == 1.0
    now["wall"] = 1060.0  # The machine slept.
    assert clock() == 60.0
    now["wall"] = 0.0  # The wall clock was set back.
    assert clock() == 60.0
    now["monotonic"] = 66.0
    assert clock() == 61.0
    with clock._mutex:  # As another thread may have it at a fork.
        now["monotonic"] = 67.0
        assert clock() == 62.0


def test_the_clock_of_the_system_goes_on() -> None:
    clock = system_clock()
    assert clock() <= clock()
