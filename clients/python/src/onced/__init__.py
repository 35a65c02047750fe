"""The Python client of `onced`: run this function once for this key, wherever and however often it is called."""

from onced import fingerprint
from onced.aio import AsyncClaim, AsyncClient, AsyncOnce
from onced.codecs import BYTES, JSON, TEXT, Codec, Protobuf
from onced.core import Done, OutcomeTooLargeError
from onced.errors import (
    CallError,
    ClaimLostError,
    Failure,
    FinalError,
    InDoubtError,
    InProgressError,
    Lost,
    NotBegunError,
    NotStoredError,
    OncedError,
    Rule,
    SetupError,
    UnfitError,
    UnreadableError,
    WorkFailedError,
)
from onced.options import OnLapse, Options, Settings, SharedOptions
from onced.sync import Claim, Client, Once
from onced.threads import to_thread

__all__ = [
    "BYTES",
    "JSON",
    "TEXT",
    "AsyncClaim",
    "AsyncClient",
    "AsyncOnce",
    "CallError",
    "Claim",
    "ClaimLostError",
    "Client",
    "Codec",
    "Done",
    "Failure",
    "FinalError",
    "InDoubtError",
    "InProgressError",
    "Lost",
    "NotBegunError",
    "NotStoredError",
    "OnLapse",
    "Once",
    "OncedError",
    "Options",
    "OutcomeTooLargeError",
    "Protobuf",
    "Rule",
    "Settings",
    "SetupError",
    "SharedOptions",
    "UnfitError",
    "UnreadableError",
    "WorkFailedError",
    "fingerprint",
    "to_thread",
]
