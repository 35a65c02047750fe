"""A claim in the hands of its holder: kept alive in the background, and watched on the holder's own clock."""

from __future__ import annotations

import logging
import threading
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Protocol

from onced.errors import LOST, CallError, ClaimLostError, Lost
from onced.process import Home
from onced.retry import jittered
from onced.transport import RENEW, Patience
from onced.v1 import idempotency_service_pb2 as v1
from onced.v1 import record_pb2 as records

if TYPE_CHECKING:
    from onced.transport import Transport

log = logging.getLogger("onced")

TICK = 0.5
"""The longest sleep between two looks at the clock, in seconds.

Timers stand still while a machine is suspended and the clock does not: nothing sleeps much longer than it may be late.
"""


class Rest(Protocol):
    """Sleeps for some seconds."""

    def __call__(self, span: float, /) -> Awaitable[object]: ...


class Held:
    """What is known of a claim. Any thread may ask."""

    def __init__(self, transport: Transport, request: v1.BeginRequest, claim: records.Claim, sent: float) -> None:
        """A claim that came as the answer to a Begin sent at `sent`."""
        self.transport = transport
        self.namespace = request.namespace
        self.key = request.key
        self.token = claim.fencing_token
        self.attempt = claim.attempt
        self.ttl = claim.lock_ttl.ToNanoseconds() / 1e9
        self.checkpoint = claim.checkpoint.data if claim.HasField("checkpoint") else None
        self.max_outcome_bytes = claim.max_outcome_bytes
        self.tell: Callable[[], object] = lambda: None
        """Called once, when the claim is lost."""
        self._sequence = claim.checkpoint.sequence
        self._ends = sent + claim.waited.ToNanoseconds() / 1e9 + self.ttl
        self._lost: Lost | None = None
        self._mutex = threading.Lock()

    def look(self) -> Lost | None:
        """Looks at the clock: a lock that has ended by it is lost."""
        if self._lost is None and self.seen():
            self._lose("lock_ended")
        return self._lost

    def seen(self) -> Lost | None:
        """The same, and nobody is told. Takes no lock, so that a forked process may ask as well."""
        return self._lost or ("lock_ended" if self.transport.clock() >= self._ends else None)

    def left(self) -> float:
        """How long the lock lives for certain, in seconds."""
        return 0.0 if self.seen() else max(self._ends - self.transport.clock(), 0.0)

    def let_go(self) -> None:
        """The claim is about to be given back."""
        self._lose("given_back")

    def _lose(self, why: Lost) -> None:
        with self._mutex:
            told = self._lost is not None
            if self._lost != "taken_over":
                self._lost = why
        if not told:
            self.tell()

    def lost_error(self, error: CallError | None = None) -> ClaimLostError:
        """That the claim was taken over."""
        said = f": {error}" if error else ""
        return ClaimLostError(
            LOST["taken_over"] + said,
            lost="taken_over",
            reason=error.reason if error else None,
            attempt=self.attempt,
            token=self.token,
        )

    async def save(self, data: bytes, total: float) -> None:
        """Saves a checkpoint, for `total` seconds at most."""
        with self._mutex:
            self._sequence += 1
            checkpoint = records.Checkpoint(sequence=self._sequence, data=data)
        try:
            await self._renew(Patience(total, self.attempt_time), checkpoint)
        except CallError as error:
            raise (self.lost_error(error) if error.is_claim_lost else error) from error.__cause__

    async def _renew(self, patience: Patience, checkpoint: records.Checkpoint | None = None) -> None:
        request = v1.RenewRequest(
            namespace=self.namespace, key=self.key, fencing_token=self.token, checkpoint=checkpoint
        )
        try:
            answer = await self.transport.call(RENEW, request, patience)
        except CallError as error:
            if error.is_claim_lost:
                self._lose("taken_over")
            raise
        with self._mutex:
            self._ends = max(self._ends, answer.sent + answer.message.lock_expires_in.ToNanoseconds() / 1e9)

    @property
    def attempt_time(self) -> float:
        """One attempt of a Renew leaves time for another at another server within the TTL."""
        return min(max(self.ttl / 4, 0.25), 10.0)

    async def keep(self, rest: Rest) -> None:
        """Renews the lock when about a third of it has passed, for as long as the claim is ours.

        A lock that ended by the clock alone is renewed all the same: nobody may have taken over yet.
        """
        clock = self.transport.clock
        moment = self._ends - self.ttl + jittered(self.ttl * 2 / 5)
        while True:
            while (left := moment - clock()) > 0:
                await rest(min(left, TICK))
                self.look()
            try:
                await self._renew(Patience(self.ttl / 3, self.attempt_time))
                pause = jittered(self.ttl * 2 / 5)
            except CallError as error:
                if error.is_claim_lost:
                    return
                pause = self.ttl / 20
            except Exception:
                # Whatever it is, a lock that nobody tries to renew ends for certain.
                log.exception("a renewal failed")
                pause = self.ttl / 20
            moment = clock() + pause

    async def guard(self, rest: Rest) -> None:
        """Ends the lock on time, whatever its renewals are doing."""
        while not self.look():
            await rest(min(self.left(), TICK))


class BaseClaim:
    """The right to run the work of a key, as the work gets it."""

    def __init__(self, request: v1.BeginRequest, held: Held | None, home: Home) -> None:
        self._held = held
        self._home = home
        self.namespace = request.namespace
        """The namespace that the run was begun with."""
        self.key = request.key
        """The key that the run was begun with. Behind a middleware with a scope it is DIGEST:KEY."""
        self.protected = held is not None
        """False if the run failed open: then nothing keeps others from running the work as well."""
        self.token = held.token if held else 0
        """Strictly larger than that of every earlier claim of the key.

        Give it to the resources that the work changes, so that they can refuse a stale holder."""
        self.attempt = held.attempt if held else 0
        """How many claims the key has had, this one included."""
        self.checkpoint = held.checkpoint if held else None
        """The last checkpoint of an earlier claim of the key, if there is one."""
        self.max_outcome_bytes = held.max_outcome_bytes if held else 0
        """The largest encoded outcome that can be stored; 0 if that is not known."""
        self.lock_ttl = held.ttl if held else 0.0
        """How long the claim lives without a renewal, in seconds. Renewals happen by themselves."""

    @property
    def lost(self) -> Lost | None:
        """Why the claim no longer protects the work, or None while it does.

        A process that the work forked knows what was known at the fork: it hears of no renewal after that.
        """
        if self._held is None:
            return None
        return self._held.seen() if self._home.is_left else self._held.look()

    def lock_left(self) -> float:
        """How long the lock lives for certain, on this machine's clock, in seconds; 0 once it is lost."""
        return self._held.left() if self._held else 0.0

    def __repr__(self) -> str:
        name = f"{self.namespace}/{self.key}"
        return f"{type(self).__name__}({name!r}, token={self.token}, attempt={self.attempt}, lost={self.lost!r})"
