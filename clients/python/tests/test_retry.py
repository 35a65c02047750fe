"""What is sent again, and when."""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2

from onced import retry
from onced.retry import Refusal

Code = grpc.StatusCode


class Failed(grpc.RpcError):
    """An error as grpc raises it."""

    def __init__(self, code: Code, details: str = "", trailers: tuple[Any, ...] = ()) -> None:
        super().__init__()
        self._answer = (code, details, trailers)

    def code(self) -> Code:
        return self._answer[0]

    def details(self) -> str:
        return self._answer[1]

    def trailing_metadata(self) -> tuple[Any, ...]:
        return self._answer[2]


def refused(code: Code, reason: str, domain: str = "onced.dev", **values: str) -> Failed:
    status = status_pb2.Status(code=code.value[0])
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain=domain, metadata=values))
    return Failed(code, "no", (("grpc-status-details-bin", status.SerializeToString()),))


@pytest.mark.parametrize(
    "error",
    [
        refused(Code.UNAVAILABLE, "STORE_UNAVAILABLE"),
        refused(Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"),
        Failed(Code.CANCELLED, "the connection went away"),
        Failed(Code.UNKNOWN, "Stream removed"),
        Failed(Code.INTERNAL, "Received RST_STREAM with error code 2"),
    ],
)
def test_what_may_pass_is_repeated(error: Failed) -> None:
    assert Refusal.of(error).may_pass


@pytest.mark.parametrize(
    "error",
    [
        refused(Code.ABORTED, "CLAIM_LOST"),
        refused(Code.INTERNAL, "INTERNAL"),
        refused(Code.CANCELLED, "CANCELLED"),
        refused(Code.RESOURCE_EXHAUSTED, "STORE_FULL"),
        refused(Code.INVALID_ARGUMENT, "KEY_REQUIRED"),
        Failed(Code.UNIMPLEMENTED, "this is another service"),
        Failed(Code.INTERNAL, "a fault of another service"),
    ],
)
def test_all_else_is_final(error: Failed) -> None:
    assert not Refusal.of(error).may_pass


def test_the_reason_is_read_from_the_error_info_of_onced_alone() -> None:
    refusal = Refusal.of(refused(Code.ABORTED, "CLAIM_LOST", holder="h"))
    assert (refusal.reason, refusal.values, str(refusal)) == ("CLAIM_LOST", {"holder": "h"}, "no (CLAIM_LOST)")
    assert Refusal.of(refused(Code.ABORTED, "CLAIM_LOST", domain="example.com")).reason is None
    assert Refusal.of(Failed(Code.ABORTED, "no", (("grpc-status-details-bin", b"\xff"),))).reason is None


def test_pushback_is_read_from_metadata_or_retry_info() -> None:
    def pushed(value: str) -> Refusal:
        return Refusal.of(Failed(Code.UNAVAILABLE, "later", (("grpc-retry-pushback-ms", value),)))

    assert pushed("250").pushback == 0.25
    for forbidding in ("-1", "soon", "", "-9223372036854775808"):
        assert not pushed(forbidding).may_pass
    status = status_pb2.Status(code=14)
    info = error_details_pb2.RetryInfo()
    info.retry_delay.FromSeconds(3)
    status.details.add().Pack(info)
    told = Failed(Code.UNAVAILABLE, "later", (("grpc-status-details-bin", status.SerializeToString()),))
    assert Refusal.of(told).pushback == 3.0


def test_the_metadata_of_both_kinds_of_calls_is_read() -> None:
    metadata = grpc.aio.Metadata(("grpc-retry-pushback-ms", "250"), ("other", "1"))
    none = grpc.aio.Metadata()
    assert Refusal.of(grpc.aio.AioRpcError(Code.UNAVAILABLE, none, metadata, "later", None)).pushback == 0.25
    assert Refusal.of(grpc.aio.AioRpcError(Code.UNAVAILABLE, none, none, "later", None)).pushback == 0


def test_other_servers_are_tried_at_once_and_rounds_wait_longer_up_to_a_cap() -> None:
    assert retry.wait(1, 3, 5.0) == 0
    assert retry.wait(2, 3, 5.0) == 0
    assert 5.0 <= retry.wait(3, 3, 5.0) <= 5.625
    for attempts in range(1, 100):
        assert retry.FIRST_WAIT / 2 <= retry.wait(attempts, 1, 0.0) <= retry.LONGEST_WAIT
    assert retry.wait(90, 1, 0.0) >= retry.LONGEST_WAIT / 2


def test_a_call_that_never_left_is_known_not_to_be_carried_out() -> None:
    gone = Failed(Code.UNAVAILABLE, "failed to connect to all addresses; last error: Connection refused")
    assert not Refusal.of(gone).may_have_written
    assert Refusal.of(Failed(Code.UNAVAILABLE, "Socket closed")).may_have_written
    assert Refusal.of(refused(Code.UNAVAILABLE, "STORE_UNAVAILABLE", write="unknown")).may_have_written
    assert not Refusal.of(refused(Code.UNAVAILABLE, "STORE_UNAVAILABLE", write="not applied")).may_have_written
