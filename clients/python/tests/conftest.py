"""Servers to test against, and what breaks between them and a client."""

from __future__ import annotations

import itertools
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from onced.v1 import idempotency_service_pb2 as v1
from onced.v1 import record_pb2 as records
from onced.v1.idempotency_service_pb2_grpc import IdempotencyServiceStub

pytest_plugins = ["sessions"]

HANGS = 30.0
"""After how long something that should have come is taken not to come, in seconds."""


class Server:
    """An onced of its own."""

    def __init__(self, *arguments: str, listen: str = "127.0.0.1:0") -> None:
        binary = os.environ.get("ONCED_BINARY")
        assert binary, "set ONCED_BINARY to the onced that the tests are to start"
        command = [binary, "serve", "--listen", listen, "--admin-listen", "off", "--store", "memory:", *arguments]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self._process.stdout is not None
        first = self._process.stdout.readline()
        assert first.startswith("listening on "), f"the server did not start: {first!r}"
        self.address = first.removeprefix("listening on ").strip()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


class Faults:
    """A gRPC server in front of another one, that does to some calls what networks do."""

    def __init__(self, behind: str) -> None:
        self.seen: list[str] = []
        self.peers: dict[str, set[str]] = {}
        self._plans: dict[str, list[Fate]] = {}
        self.released = threading.Event()
        self._channel = grpc.insecure_channel(behind)
        self._server = grpc.server(futures.ThreadPoolExecutor(16))
        self._server.add_generic_rpc_handlers([_Handlers(self)])
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def plan(self, call: str, fate: Fate, times: int = 1) -> None:
        """What becomes of the next calls of a name."""
        self._plans.setdefault(call, []).extend([fate] * times)

    def clear(self) -> None:
        """Nothing is done to calls from now on, and those that are held go on."""
        self._plans.clear()
        self.released.set()

    def handle(self, path: str, request: bytes, context: grpc.ServicerContext) -> bytes:
        name = path.rpartition("/")[2]
        self.seen.append(name)
        self.peers.setdefault(name, set()).add(context.peer())
        planned = self._plans.get(name)
        fate = planned.pop(0) if planned else None
        answer = None if fate is not None and not fate.reaches else self.forward(path, request, context)
        return fate(context, answer, self) if fate else answer or b""

    def forward(self, path: str, request: bytes, context: grpc.ServicerContext) -> bytes:
        send: Any = self._channel.unary_unary(path, request_serializer=None, response_deserializer=None)
        try:
            answer: bytes = send(request, timeout=context.time_remaining())
        except grpc.RpcError as error:
            status: Any = error
            context.set_trailing_metadata(tuple(status.trailing_metadata()))
            context.abort(status.code(), status.details())
        return answer

    def stop(self) -> None:
        self.released.set()
        self._server.stop(None).wait()
        self._channel.close()


class Fate:
    """What becomes of a call."""

    def __init__(self, do: Callable[[grpc.ServicerContext, bytes | None, Faults], bytes], *, reaches: bool) -> None:
        self._do = do
        self.reaches = reaches

    def __call__(self, context: grpc.ServicerContext, answer: bytes | None, faults: Faults) -> bytes:
        return self._do(context, answer, faults)


def refuse(
    code: grpc.StatusCode, reason: str = "", *, pushback: str | None = None, retry_after: float | None = None
) -> Fate:
    """It does not reach the server, and is refused."""

    def do(context: grpc.ServicerContext, _answer: bytes | None, _faults: Faults) -> bytes:
        status = status_pb2.Status(code=code.value[0], message="refused by the test")
        if reason:
            info = error_details_pb2.ErrorInfo(reason=reason, domain="onced.dev")
            status.details.add().Pack(info)
        if retry_after is not None:
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.FromMilliseconds(int(retry_after * 1000))
            status.details.add().Pack(retry)
        trailers: list[tuple[str, Any]] = [("grpc-status-details-bin", status.SerializeToString())]
        if pushback is not None:
            trailers.append(("grpc-retry-pushback-ms", pushback))
        context.set_trailing_metadata(tuple(trailers))
        context.abort(code, status.message)

    return Fate(do, reaches=False)


def lose() -> Fate:
    """It reaches the server, and its answer is lost."""

    def do(context: grpc.ServicerContext, _answer: bytes | None, _faults: Faults) -> bytes:
        context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")

    return Fate(do, reaches=True)


def stall() -> Fate:
    """It does not reach the server, and is not answered until the plans are cleared."""

    def do(context: grpc.ServicerContext, _answer: bytes | None, faults: Faults) -> bytes:
        faults.released.wait(HANGS)
        context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")

    return Fate(do, reaches=False)


def hold() -> Fate:
    """It reaches the server, and its answer is held back until the plans are cleared."""

    def do(_context: grpc.ServicerContext, answer: bytes | None, faults: Faults) -> bytes:
        faults.released.wait(HANGS)
        return answer or b""

    return Fate(do, reaches=True)


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    def __init__(self, faults: Faults) -> None:
        self._faults = faults

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        path: str = handler_call_details.method
        return grpc.unary_unary_rpc_method_handler(lambda request, context: self._faults.handle(path, request, context))


class Direct:
    """Calls of the API without the library."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address)
        self.stub = IdempotencyServiceStub(self._channel)

    def lookup(self, key: str, wait: float = 0.0) -> v1.LookupResponse:
        request = v1.LookupRequest(namespace="default", key=key)
        request.wait.FromMilliseconds(int(wait * 1000))
        return self.stub.Lookup(request, timeout=HANGS)

    def state(self, key: str) -> str:
        """The state of a record, or `absent`."""
        try:
            return self.lookup(key).WhichOneof("record") or ""
        except grpc.RpcError as error:
            status: Any = error
            if status.code() is grpc.StatusCode.NOT_FOUND:
                return "absent"
            raise

    def claim(self, key: str, request_id: str = "6f1c5c66-6e0b-4b3a-9a55-0d4b4f3c8a01") -> int:
        request = v1.BeginRequest(namespace="default", key=key, request_id=request_id, owner="direct")
        answer = self.stub.Begin(request, timeout=HANGS)
        assert answer.HasField("claim"), answer
        return answer.claim.fencing_token

    def complete(self, key: str, token: int, outcome: records.Outcome) -> None:
        request = v1.CompleteRequest(namespace="default", key=key, fencing_token=token, outcome=outcome)
        self.stub.Complete(request, timeout=HANGS)

    def release(self, key: str, token: int) -> None:
        request = v1.ReleaseRequest(
            namespace="default", key=key, fencing_token=token, disposition=records.DISPOSITION_RETRY
        )
        self.stub.Release(request, timeout=HANGS)

    def close(self) -> None:
        self._channel.close()


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The address of a server that all tests share; each takes keys of its own."""
    running = Server()
    yield running.address
    running.kill()


@pytest.fixture
def own_server() -> Iterator[Server]:
    """A server that a test may do anything to."""
    running = Server()
    yield running
    running.kill()


@pytest.fixture
def faults(server: str) -> Iterator[Faults]:
    proxy = Faults(server)
    yield proxy
    proxy.stop()


@pytest.fixture
def direct(server: str) -> Iterator[Direct]:
    calls = Direct(server)
    yield calls
    calls.close()


_keys = itertools.count()


@pytest.fixture
def key() -> str:
    """A key that no other test has."""
    return f"key-{next(_keys)}"


@pytest.fixture(scope="session")
def vectors() -> Path:
    """The vectors that all client libraries share."""
    return Path(__file__).parents[2] / "vectors" / "fingerprints.json"
