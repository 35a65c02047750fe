"""What callers may say: the settings of a client, and the options of a run."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypedDict

from google.protobuf.duration_pb2 import Duration

from onced.access import StrPath
from onced.clock import Seconds, seconds
from onced.errors import Rule, SetupError
from onced.v1 import idempotency_service_pb2 as v1
from onced.v1 import record_pb2 as records

DEFAULT_TIMEOUT = 30.0
"""How long a call is tried, beyond the wait it asks for, in seconds."""
DEFAULT_SERVER = "127.0.0.1:7411"
DEFAULT_WAIT = 60.0
"""How long a duplicate waits for the outcome, in seconds."""

OnLapse = Literal["take_over", "hold"]
"""What becomes of a claim whose holder died: the next caller gets it, or it is in doubt."""

DISPOSITIONS = {"retry": records.DISPOSITION_RETRY, "in_doubt": records.DISPOSITION_IN_DOUBT}
ON_LAPSE = {"take_over": records.ON_LAPSE_TAKE_OVER, "hold": records.ON_LAPSE_HOLD}


class Settings(TypedDict, total=False):
    """The settings of a client. Files are read when it is made, but for that of the token."""

    timeout: Seconds
    """How long a call is tried, beyond the wait it asks for. 30 s unless told otherwise."""
    owner: str
    """Who asks: shown to duplicates and operators. User, host and process id unless told otherwise."""
    ca_file: StrPath | None
    """The CA that signed the servers' certificates, in PEM. Those that the system trusts unless told otherwise."""
    cert_file: StrPath | None
    """The certificate to show to servers, in PEM."""
    key_file: StrPath | None
    """The key of that certificate, in PEM."""
    token: str | None
    """The token that says who calls."""
    token_file: StrPath | None
    """A file of that token. It is read again when it is refused, and every few seconds."""
    sessions: bool
    """Whether a stream carries the calls of a connection while they are many. False unless told otherwise: it spares
    threads little, and costs asyncio more."""
    allow_token_in_plaintext: bool
    """Sends the token also where it goes over a network without TLS, for all to read."""


class SharedOptions(TypedDict, total=False):
    """The options of all runs of a function. Time spans are seconds, or a `timedelta`."""

    namespace: str
    """Who owns the key. `default` unless told otherwise."""
    lock_ttl: Seconds
    """How soon others take over from a crash, 2 s to 1 h. That of the namespace unless told otherwise."""
    wait: Seconds | None
    """How long to wait while somebody else is at it. 60 s unless told otherwise; None: without end."""
    retention: Seconds
    """How long the outcome is kept, at least, 1 min to 31 d. That of the namespace unless told otherwise."""
    on_lapse: OnLapse
    """What becomes of the key if this process dies while the work runs. As the namespace says unless told otherwise."""
    on_failure: Rule
    """What becomes of the key when the work fails without saying, or is cancelled. `retry` unless told otherwise."""
    owner: str
    """Who asks; the client's owner unless told otherwise."""
    fail_open: Seconds | None
    """After how long without an answer the work runs without a claim. None or 0, and unless told so: never."""
    on_wait: Callable[[records.InProgress], None]
    """Called now and then while somebody else is at it."""


class Options(SharedOptions, total=False):
    """The options of one run."""

    fingerprint: bytes
    """A digest of the request, at most 64 bytes (see `onced.fingerprint`): the key used for another one is an error."""


@dataclass(frozen=True)
class Plan:
    """What a run is to do."""

    request: v1.BeginRequest
    wait: float | None
    on_failure: Rule
    fail_open: float | None
    on_wait: Callable[[records.InProgress], None] | None

    @classmethod
    def of(cls, key: str, owner: str, options: Options) -> Plan:
        """Reads the options of a run."""
        unknown = options.keys() - Options.__annotations__.keys()
        if unknown:
            raise TypeError(f"no such option: {', '.join(sorted(unknown))}")
        rule, lapse = options.get("on_failure", "retry"), options.get("on_lapse")
        if rule not in DISPOSITIONS:
            raise SetupError(f"on_failure is 'retry' or 'in_doubt', and not {rule!r}")
        if lapse not in (None, *ON_LAPSE):
            raise SetupError(f"on_lapse is 'take_over' or 'hold', and not {lapse!r}")
        request = v1.BeginRequest(
            namespace=options.get("namespace", "default"),
            key=key,
            fingerprint=options.get("fingerprint", b""),
            owner=options.get("owner", owner),
            lock_ttl=_wired("lock_ttl", options.get("lock_ttl")),
            retention=_wired("retention", options.get("retention")),
            on_lapse=ON_LAPSE[lapse] if lapse else records.ON_LAPSE_UNSPECIFIED,
        )
        return cls(
            request,
            span("wait", options.get("wait", DEFAULT_WAIT)),
            rule,
            span("fail_open", options.get("fail_open")) or None,
            options.get("on_wait"),
        )

    def fresh(self) -> Plan:
        """The same for one run: each is an attempt of its own, and an id is spent once its claim was given back."""
        request = v1.BeginRequest()
        request.CopyFrom(self.request)
        request.request_id = str(uuid.uuid4())
        return replace(self, request=request)


def span(name: str, value: Seconds | None) -> float | None:
    """The number of seconds in a setting or option."""
    if value is None:
        return None
    length = seconds(value)
    if not (math.isfinite(length) and length >= 0):
        raise SetupError(f"{name} is a number of seconds, 0 or more, and not {value!r}")
    return length


def _wired(name: str, value: Seconds | None) -> Duration | None:
    length = span(name, value)
    return None if length is None else wire(length)


def wire(length: float) -> Duration:
    """A number of seconds as the API has it."""
    duration = Duration()
    duration.FromNanoseconds(round(length * 1e9))
    return duration
