"""What can go wrong, as classes of one base.

Every error carries what the server said of it, where it said so: `reason` (a name of docs/errors), `owner`, `attempt`
and `token`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage

if TYPE_CHECKING:
    from onced.v1.record_pb2 import Outcome

Rule = Literal["retry", "in_doubt"]
"""What becomes of a key whose work failed: free for the next caller, or nobody's until an operator has resolved it."""

Lost = Literal["taken_over", "lock_ended", "given_back"]
"""Why a claim no longer protects its work."""

LOST: dict[Lost, str] = {
    "taken_over": "the claim was taken over, settled or deleted",
    "lock_ended": "the lock could not be renewed in time, so that others may take over",
    "given_back": "the claim was given back",
}


class OncedError(Exception):
    """The base of all errors of this package."""

    kind: ClassVar[str] = "error"
    """The name of this error in every client library."""

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        owner: str | None = None,
        attempt: int | None = None,
        token: int | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.owner = owner
        self.attempt = attempt
        self.token = token

    def __reduce__(self) -> tuple[object, ...]:
        # The arguments alone do not make one again, as pickle has it.
        return _revived, (type(self), self.args, self.__dict__)


def _revived(kind: type[OncedError], args: tuple[object, ...], state: dict[str, object]) -> OncedError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


class SetupError(OncedError, ValueError):
    """An address, a file or a setting cannot be used. The message says what to do."""

    kind = "invalid"


class UnfitError(OncedError, ValueError):
    """No fingerprint can be made of this value. The message says why."""

    kind = "unfit"


class CallError(OncedError):
    """A call failed: a server refused it, or none answered in time."""

    kind = "call"

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode = grpc.StatusCode.UNKNOWN,
        reason: str | None = None,
        values: Mapping[str, str] | None = None,
        unavailable: bool = False,
        unsettled: bool = False,
        answered: bool = False,
        setup: bool = False,
    ) -> None:
        super().__init__(message, reason=reason)
        self.code = code
        """The status code of the last answer."""
        self.values = dict(values or {})
        """What the server says of the reason, by name."""
        self.unavailable = unavailable
        """No server could do it before the time was up. The same call may be made again."""
        self.unsettled = unsettled
        """An attempt of it may have been carried out all the same."""
        self.answered = answered
        """A server answered, and with something else than UNAVAILABLE."""
        self.setup = setup
        """It fails because of how the client, or the server, was set up."""

    @property
    def is_claim_lost(self) -> bool:
        """The claim that the call named is no longer the caller's."""
        return self.reason in ("CLAIM_LOST", "RECORD_NOT_FOUND") and not self.unavailable


class NotBegunError(OncedError):
    """The key could not be claimed: refused, or no server in time. The work did not run in this call."""

    kind = "not_begun"

    def __init__(self, message: str, *, reason: str | None = None, unavailable: bool = False) -> None:
        super().__init__(message, reason=reason)
        self.unavailable = unavailable
        """No server could be asked. Otherwise the same call would be refused again."""


class InProgressError(OncedError):
    """Somebody else was still at it when the wait was over."""

    kind = "in_progress"


class InDoubtError(OncedError):
    """What an earlier claim did is unknown. Nobody may run the key until an operator has resolved `token`."""

    kind = "in_doubt"


class WorkFailedError(OncedError):
    """The work failed, and its claim was given back by a rule. `__cause__` is the error of the work."""

    kind = "failed"

    def __init__(
        self,
        message: str,
        *,
        rule: Rule,
        released: bool,
        lost: Lost | None = None,
        owner: str | None = None,
        attempt: int | None = None,
        token: int | None = None,
    ) -> None:
        super().__init__(message, owner=owner, attempt=attempt, token=token)
        self.rule = rule
        """What was asked to become of the key."""
        self.released = released
        """Whether that was confirmed. If not, the claim lapses by itself after its lock TTL."""
        self.lost = lost
        """How the claim had been lost before the work failed."""


class ClaimLostError(OncedError):
    """The claim was lost while the work ran, so what it did does not count. Somebody else may have run it."""

    kind = "claim_lost"

    def __init__(
        self,
        message: str,
        *,
        lost: Lost,
        reason: str | None = None,
        attempt: int | None = None,
        token: int | None = None,
    ) -> None:
        super().__init__(message, reason=reason, attempt=attempt, token=token)
        self.lost = lost


class NotStoredError(OncedError):
    """The work is done, but whether its outcome is stored is unknown, or it was refused.

    The claim is not given back, since the outcome may be there. It lapses by itself if it is not.
    """

    kind = "not_stored"

    def __init__(
        self,
        message: str,
        *,
        outcome: Outcome,
        value: object = None,
        reason: str | None = None,
        attempt: int | None = None,
        token: int | None = None,
    ) -> None:
        super().__init__(message, reason=reason, attempt=attempt, token=token)
        self.outcome = outcome
        """What was to be stored."""
        self.value = value
        """What the work returned."""


class UnreadableError(OncedError):
    """The stored outcome cannot be read by the codec. Nothing ran."""

    kind = "unreadable"

    def __init__(
        self,
        message: str,
        *,
        outcome: Outcome,
        owner: str | None = None,
        attempt: int | None = None,
        token: int | None = None,
    ) -> None:
        super().__init__(message, owner=owner, attempt=attempt, token=token)
        self.outcome = outcome
        """What is stored."""


class FinalError(OncedError):
    """The work failed for good. Raise it in the work: it is stored, and raised in every caller alike.

    `code` is a gRPC status code other than OK, as a `grpc.StatusCode` or a number from 1 to 16.
    """

    kind = "final"

    def __init__(
        self,
        code: grpc.StatusCode | int,
        message: str = "",
        *,
        details: Sequence[AnyMessage] = (),
        ran_here: bool = True,
        owner: str | None = None,
        attempt: int | None = None,
        token: int | None = None,
    ) -> None:
        super().__init__(message, owner=owner, attempt=attempt, token=token)
        number: int = code if isinstance(code, int) else code.value[0]
        if not 1 <= number <= 16:
            raise ValueError(f"the code of a final error is 1 to 16, and this is {number}")
        self.code = number
        """The number of the status code."""
        self.message = message
        self.details = tuple(details)
        self.ran_here = ran_here
        """True if the work ran in this call; false if this is the outcome of another one."""


class Failure(OncedError):
    """Raise it in the work to say what becomes of the key; `raise ... from` the cause.

    `"retry"`: nothing happened, or it is safe to do again. `"in_doubt"`: what happened is unknown.
    """

    kind = "failure"

    def __init__(self, message: str, rule: Rule) -> None:
        super().__init__(message)
        if rule not in ("retry", "in_doubt"):
            raise ValueError(f"the rule is 'retry' or 'in_doubt', and not {rule!r}")
        self.rule: Rule = rule
