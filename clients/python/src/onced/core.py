"""Run this function once for this key: what is the same in threads and in asyncio."""

from __future__ import annotations

import logging
import math
import os
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Generic, TypeGuard, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.status_pb2 import Status

from onced.access import Access
from onced.claim import Held
from onced.clock import system_clock
from onced.codecs import Codec
from onced.errors import (
    CallError,
    ClaimLostError,
    Failure,
    FinalError,
    InDoubtError,
    InProgressError,
    NotBegunError,
    NotStoredError,
    Rule,
    SetupError,
    UnreadableError,
    WorkFailedError,
)
from onced.options import DEFAULT_SERVER, DEFAULT_TIMEOUT, DISPOSITIONS, Plan, Settings, span, wire
from onced.owner import default_owner
from onced.transport import ASK_AGAIN, BEGIN, COMPLETE, RELEASE, Answer, Io, Patience, Transport
from onced.v1 import idempotency_service_pb2 as v1
from onced.v1 import record_pb2 as records

log = logging.getLogger("onced")

ATTEMPT_TIME = 10.0
"""How long one attempt of a call may take, beyond the wait it asks for, before the next server is tried, in seconds."""
SHORTEST_SHARE = 0.1
"""How long one attempt may take at least while failing open may come, in seconds: less would find no server there."""
# The first wait is short, so that a record in doubt is told of soon; each further one doubles, up to the last.
FIRST_POLL = 1.0
LAST_POLL = 16.0
EARLY_ANSWER_PAUSE = 0.5
"""The longest pause after an answer that came sooner than the wait it asked for, in seconds."""
REASON_BYTES = 1024
"""The longest reason that a Release takes, in bytes."""

T = TypeVar("T")


@dataclass(frozen=True)
class Done(Generic[T]):
    """The key has its outcome."""

    value: T
    """What the work returned, here or elsewhere."""
    ran_here: bool
    """True if the work ran in this call; false if this is the outcome of another one."""
    owner: str
    """Who completed it."""
    attempt: int
    """The attempt that completed; 0 if the run failed open."""
    token: int
    """The fencing token that completed; 0 if the run failed open."""
    protected: bool = True
    """False if the run failed open: the work ran without a claim, and nothing is stored."""
    completed_at: datetime | None = None
    """When it was stored, by the storing server's clock."""
    expires_at: datetime | None = None
    """Until when, at least, it can be read."""


@dataclass(frozen=True)
class Ended(Generic[T]):
    """How the work ended: with a value, or with an error."""

    value: T | None = None
    error: BaseException | None = None


@dataclass(frozen=True)
class GiveBack:
    """The claim is to be given back by a rule, because of an error."""

    rule: Rule
    error: BaseException


class OutcomeTooLargeError(ValueError):
    """The work succeeded, and its outcome is over the limit that the claim told."""


def judge(plan: Plan, codec: Codec[T], max_bytes: int, ended: Ended[T]) -> records.Outcome | GiveBack:
    """What becomes of the key: its outcome, or that it is given back."""
    error = ended.error
    if isinstance(error, Failure):
        return GiveBack(error.rule, error)
    if error is not None and not _is_own(error):
        return GiveBack(plan.on_failure, error)
    # The work ran to its end. If that cannot be stored nobody may run it again unasked, whatever the rule is.
    try:
        outcome = _final_outcome(error) if error is not None else codec.encode(ended.value)  # type: ignore[arg-type]
        size = outcome.ByteSize()
    except Exception as unfit:
        return GiveBack("in_doubt", unfit)
    if max_bytes and size > max_bytes:
        too_large = f"the outcome takes {size} bytes encoded, and the server stores at most {max_bytes}"
        return GiveBack("in_doubt", OutcomeTooLargeError(too_large))
    return outcome


def _is_own(error: BaseException) -> TypeGuard[FinalError]:
    """Whether the work says so of itself that it failed for good, and not of a run of another key."""
    return isinstance(error, FinalError) and error.token is None


def _final_outcome(error: FinalError) -> records.Outcome:
    return records.Outcome(error=Status(code=error.code, message=error.message, details=error.details))


def make_core(servers: str | None, settings: Settings, io: Io) -> Core:
    """What a client of these servers and settings calls them with."""
    unknown = settings.keys() - Settings.__annotations__.keys()
    if unknown:
        raise TypeError(f"no such setting: {', '.join(sorted(unknown))}")
    access = Access(
        settings.get("ca_file"),
        settings.get("cert_file"),
        settings.get("key_file"),
        settings.get("token"),
        settings.get("token_file"),
        settings.get("allow_token_in_plaintext", False),
    )
    named = os.environ.get("ONCED_SERVER") or DEFAULT_SERVER if servers is None else servers
    timeout = span("timeout", settings.get("timeout", DEFAULT_TIMEOUT))
    if not timeout:
        raise SetupError(f"timeout is a number of seconds, more than 0, and not {settings['timeout']!r}")
    return Core(Transport(named, access, system_clock(), io), timeout, settings.get("owner"))


class Core:
    """The calls that a run makes."""

    def __init__(self, transport: Transport, timeout: float, owner: str | None) -> None:
        self.transport = transport
        self.timeout = timeout
        self._owner = owner

    @property
    def owner(self) -> str:
        """Who asks unless a run says otherwise."""
        return default_owner() if self._owner is None else self._owner

    def patience(self, wait: float) -> Patience:
        return Patience(wait + self.timeout, wait + ATTEMPT_TIME)

    async def begin(self, plan: Plan) -> Answer[v1.BeginResponse] | None:
        """Begins and waits, with one request id, until the key is ours, has an outcome, or the wait is over.

        None: no server answered for as long as the plan says, and it fails open.
        """
        clock = self.transport.clock
        until = math.inf if plan.wait is None else clock() + plan.wait
        opens = math.inf if plan.fail_open is None else clock() + plan.fail_open
        longest, opening, unsettled = FIRST_POLL, plan.fail_open, False
        while True:
            poll = max(min(longest, until - clock()), 0.0)
            patience = self.patience(poll)
            if opening is not None:
                # A server that waits for a holder is not silent, and must not be taken for it: none is asked to. Each
                # gets its share of the time: one that hangs does not stand for all.
                share = max(opening / len(self.transport.servers), SHORTEST_SHARE)
                poll, patience = 0.0, Patience(opening, min(share, ATTEMPT_TIME))
            plan.request.wait.CopyFrom(wire(poll))
            try:
                answer = await self.transport.call(BEGIN, plan.request, patience)
            except CallError as error:
                unsettled = error.unsettled = error.unsettled or unsettled
                if opening is None or not error.unavailable:
                    raise
                # Neither a refusal nor what somebody set up wrong is an outage.
                if not (error.answered or error.setup):
                    # It may have ended early, where a server has asked for more time than there is.
                    await self._rest(opens - clock())
                    return None
                opening = None
                continue
            if answer.message.WhichOneof("result") != "in_progress" or until <= clock():
                return answer
            if opening is not None:
                opening = None
                continue
            if plan.on_wait:
                plan.on_wait(answer.message.in_progress)
            # A server may end a wait early, by its own limit. Asking again at once could make a busy loop.
            await self._rest(min(poll - (clock() - answer.sent), EARLY_ANSWER_PAUSE))
            longest = min(longest * 2, LAST_POLL)

    async def _rest(self, span: float) -> None:
        if span > 0:
            await self.transport.io.sleep(span, BEGIN.ends_at_close)

    async def give_back(self, request: v1.BeginRequest) -> None:
        """Asks once more for a claim that nobody heard of, and gives it back. Nothing has run under it."""
        asked = v1.BeginRequest()
        asked.CopyFrom(request)
        asked.ClearField("wait")
        try:
            answer = await self.transport.call(ASK_AGAIN, asked, self.patience(0))
            if answer.message.WhichOneof("result") == "claim":
                held = Held(self.transport, asked, answer.message.claim, answer.sent)
                await self._release(held, "retry", "the caller gave up before it had the claim")
        except CallError as error:
            log.debug("a claim that nobody may have heard of was not given back; it lapses by itself: %s", error)

    async def complete(self, held: Held, outcome: records.Outcome, value: object) -> records.Completed:
        """Stores an outcome. From here on the claim is never given back."""
        request = v1.CompleteRequest(namespace=held.namespace, key=held.key, fencing_token=held.token, outcome=outcome)
        # Work that is done is worth trying for as long as the lock would have lived.
        patience = Patience(max(self.timeout, held.ttl), ATTEMPT_TIME)
        try:
            return (await self.transport.call(COMPLETE, request, patience)).message.completed
        except CallError as error:
            if error.is_claim_lost:
                raise held.lost_error(error) from error
            raise NotStoredError(
                f"the work is done, but its outcome is not known to be stored: {error}",
                outcome=outcome,
                value=value,
                reason=error.reason,
                attempt=held.attempt,
                token=held.token,
            ) from error

    async def fail(self, held: Held, given: GiveBack) -> WorkFailedError | ClaimLostError:
        """Gives the claim back; what to tell the caller."""
        lost = held.look()
        if lost == "taken_over":
            return held.lost_error()
        held.let_go()
        released, because = True, ""
        try:
            await self._release(held, given.rule, _text(given.error))
        except CallError as error:
            if error.is_claim_lost:
                return held.lost_error(error)
            released, because = False, f" (its claim was not given back, and lapses by itself: {error})"
        return WorkFailedError(
            f"the work failed: {_text(given.error)}{because}",
            rule=given.rule,
            released=released,
            lost=lost,
            attempt=held.attempt,
            token=held.token,
        )

    async def _release(self, held: Held, rule: Rule, reason: str) -> None:
        request = v1.ReleaseRequest(
            namespace=held.namespace,
            key=held.key,
            fencing_token=held.token,
            disposition=DISPOSITIONS[rule],
            reason=head(reason, REASON_BYTES),
        )
        await self.transport.call(RELEASE, request, self.patience(0))


def replay(message: v1.BeginResponse, codec: Codec[T]) -> Done[T]:
    """What a duplicate gets; raises what keeps the work from running. Not for a claim."""
    if message.HasField("completed"):
        return done(message.completed, _decoded(message.completed, codec), ran_here=False)
    if message.HasField("in_progress"):
        there = message.in_progress
        raise InProgressError(f"{there.owner} is still at it", owner=there.owner, attempt=there.attempt)
    if message.HasField("in_doubt"):
        raise _in_doubt(message.in_doubt)
    raise NotBegunError("the server's answer to Begin holds nothing known here; is the server newer than this client?")


def _in_doubt(record: records.InDoubt) -> InDoubtError:
    text = (
        f"what {record.owner} did is unknown ({record.reason}); an operator must resolve token {record.fencing_token}"
    )
    return InDoubtError(
        text, reason=record.reason, owner=record.owner, attempt=record.attempt, token=record.fencing_token
    )


def _decoded(completed: records.Completed, codec: Codec[T]) -> T:
    outcome = completed.outcome
    if outcome.HasField("error"):
        raise final(outcome.error, completed, ran_here=False)
    try:
        if outcome.WhichOneof("result") is None:
            raise ValueError("it is neither a response nor an error")
        return codec.decode(outcome)
    except Exception as error:
        raise UnreadableError(
            f"the stored outcome cannot be read: {error}",
            outcome=outcome,
            owner=completed.owner,
            attempt=completed.attempt,
            token=completed.fencing_token,
        ) from error


def final(error: Status, completed: records.Completed, *, ran_here: bool) -> FinalError:
    """A final error, as all callers get it."""
    return FinalError(
        error.code,
        error.message,
        details=list(error.details),
        ran_here=ran_here,
        owner=completed.owner,
        attempt=completed.attempt,
        token=completed.fencing_token,
    )


def done(completed: records.Completed, value: T, *, ran_here: bool) -> Done[T]:
    """What a caller gets of a key that has its outcome."""
    return Done(
        value,
        ran_here,
        completed.owner,
        completed.attempt,
        completed.fencing_token,
        completed_at=_time(completed.completed_at) if completed.HasField("completed_at") else None,
        expires_at=_time(completed.expires_at) if completed.HasField("expires_at") else None,
    )


def unprotected(plan: Plan, ended: Ended[T]) -> Done[T]:
    """What a caller gets of a run that failed open; raises as a run with a claim would."""
    error = ended.error
    if error is None:
        return Done(ended.value, True, plan.request.owner, 0, 0, protected=False)  # type: ignore[arg-type]
    if _is_own(error):
        raise FinalError(
            error.code, error.message, details=error.details, owner=plan.request.owner, attempt=0, token=0
        ) from error
    if not isinstance(error, Exception):
        raise error
    rule = error.rule if isinstance(error, Failure) else plan.on_failure
    raise WorkFailedError(f"the work failed: {_text(error)}", rule=rule, released=False) from error


def not_begun(error: CallError) -> NotBegunError:
    """That a key could not be claimed."""
    return NotBegunError(str(error), reason=error.reason, unavailable=error.unavailable)


def closed() -> NotBegunError:
    """That the client is closed."""
    return NotBegunError("this client is closed")


def _time(stamp: Timestamp) -> datetime:
    return stamp.ToDatetime(timezone.utc)


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__


def head(text: str, max_bytes: int) -> str:
    """The first bytes of a text, cut between characters."""
    return text.encode("utf-8", "replace")[:max_bytes].decode("utf-8", "ignore")
