"""Which server a call goes to, and how often, with a network and a clock that are made up."""

from __future__ import annotations

from typing import Any, cast

import grpc
import pytest
from test_retry import Failed, refused

from onced.access import Access
from onced.core import Core
from onced.errors import CallError, SetupError
from onced.options import Options, Plan
from onced.transport import BEGIN, Answer, Patience, Server, Transport, blocking
from onced.v1 import idempotency_service_pb2 as v1
from onced.v1 import record_pb2 as records

Code = grpc.StatusCode
ASKED = v1.BeginRequest(key="k")
PATIENCE = Patience(total=30.0, attempt=10.0)
GONE = Failed(Code.UNAVAILABLE, "failed to connect to all addresses; last error: Connection refused")


class Network:
    """Answers each call by a script, and sleeps by moving the clock on."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []
        self.timeouts: list[float] = []
        self.tokens: list[str] = []
        self.slept: list[float] = []
        self.waits: list[float] = []
        self.now = 100.0
        self.takes = 0.0

    async def send(self, server: Server, method: Any, request: Any, timeout: float, metadata: Any) -> Any:
        self.asked.append(server.name)
        self.timeouts.append(timeout)
        if isinstance(request, v1.BeginRequest):
            self.waits.append(request.wait.ToNanoseconds() / 1e9)
        self.tokens += [value for _, value in metadata]
        self.now += min(self.takes, timeout)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def take(self, server: Server, method: Any, request: Any, timeout: float, metadata: Any) -> Any:
        return None

    async def sleep(self, span: float, ends_at_close: bool) -> None:
        assert ends_at_close
        self.slept.append(span)
        self.now += span


def call(network: Network, servers: str = "a:1", access: Access | None = None) -> Answer[v1.BeginResponse]:
    transport = Transport(servers, access or Access(), lambda: network.now, cast(Any, network))
    transport._current = 0
    return blocking(transport.call(BEGIN, ASKED, PATIENCE))


def failure(network: Network, servers: str = "a:1") -> CallError:
    with pytest.raises(CallError) as failed:
        call(network, servers)
    return failed.value


OK = v1.BeginResponse()


def test_a_round_over_all_servers_comes_before_any_pause() -> None:
    network = Network(GONE, GONE, GONE, OK)
    answer = call(network, "a:1, b:1,c:1")
    assert network.asked == ["a:1", "b:1", "c:1", "a:1"]
    assert len(network.slept) == 1
    assert 0.025 <= network.slept[0] <= 0.05
    assert answer.sent == pytest.approx(100 + network.slept[0])


def pushed(millis: int) -> Failed:
    return Failed(Code.UNAVAILABLE, "later", (("grpc-retry-pushback-ms", str(millis)),))


def test_the_longest_pushback_of_a_round_is_kept_to_and_then_forgotten() -> None:
    network = Network(pushed(4000), pushed(10), GONE, GONE, OK)
    call(network, "a:1,b:1")
    assert network.asked == ["a:1", "b:1", "a:1", "b:1", "a:1"]
    assert 4.0 <= network.slept[0] <= 4.5
    assert network.slept[1] <= 0.1


def test_a_call_goes_to_the_server_that_answered_last() -> None:
    network = Network(GONE, OK)
    transport = Transport("a:1,b:1", Access(), lambda: network.now, cast(Any, network))
    transport._current = 0
    blocking(transport.call(BEGIN, ASKED, PATIENCE))
    blocking(transport.call(BEGIN, ASKED, PATIENCE))
    assert network.asked == ["a:1", "b:1", "b:1"]


def test_clients_begin_at_different_servers() -> None:
    names = [f"s{n}:1" for n in range(8)]
    firsts = {Transport(",".join(names), Access(), lambda: 0.0, cast(Any, None))._current for _ in range(200)}
    assert len(firsts) > 1


def test_a_refusal_is_final() -> None:
    network = Network(refused(Code.FAILED_PRECONDITION, "FINGERPRINT_MISMATCH"))
    error = failure(network, "a:1,b:1")
    assert (error.reason, error.unavailable, error.answered) == ("FINGERPRINT_MISMATCH", False, True)
    assert len(network.asked) == 1


def test_time_runs_out_before_an_attempt_that_would_come_too_late() -> None:
    network = Network(GONE)
    error = failure(network)
    assert error.unavailable
    assert [error.unsettled, error.answered, error.setup] == [False, False, False]
    assert "no answer from a:1" in str(error)
    assert "Connection refused" in str(error)
    assert 128 < network.now < 130
    network = Network(Failed(Code.DEADLINE_EXCEEDED, "Deadline Exceeded"))
    network.takes = 60
    error = failure(network)
    assert error.unsettled
    assert "a:1 did not answer within" in str(error)
    assert network.timeouts[:2] == [10.0, 10.0]
    assert network.timeouts[2] < 10


def test_what_a_server_said_is_told_beside_the_silence_after_it() -> None:
    network = Network(refused(Code.UNAVAILABLE, "STORE_UNAVAILABLE"), GONE)
    error = failure(network)
    assert error.reason == "STORE_UNAVAILABLE"
    assert "a:1 answered, but could not do it" in str(error)
    assert not error.answered
    network = Network(refused(Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"), GONE)
    assert failure(network).answered


BAD = Failed(Code.UNAVAILABLE, "failed to connect: Ssl handshake failed: CERTIFICATE_VERIFY_FAILED")


def test_what_is_set_up_wrong_is_told_after_a_round_and_not_when_time_is_up() -> None:
    network = Network(BAD)
    error = failure(network, "a:1,b:1")
    assert network.asked == ["a:1", "b:1"]
    assert (error.setup, error.unavailable) == (True, False)
    assert "ca_file" in str(error)


def test_a_client_that_was_answered_before_sits_out_what_is_set_up_wrong() -> None:
    network = Network(OK, BAD, BAD, OK)
    transport = Transport("a:1", Access(), lambda: network.now, cast(Any, network))
    blocking(transport.call(BEGIN, ASKED, PATIENCE))
    blocking(transport.call(BEGIN, ASKED, PATIENCE))
    assert len(network.asked) == 4


def test_a_token_that_was_refused_is_read_again(tmp_path: Any) -> None:
    file = tmp_path / "token"
    file.write_text("one\n")
    network = Network(refused(Code.UNAUTHENTICATED, "CREDENTIALS_INVALID"))
    transport = Transport("127.0.0.1:1", Access(token_file=file), lambda: network.now, cast(Any, network))
    with pytest.raises(CallError):
        blocking(transport.call(BEGIN, ASKED, PATIENCE))
    assert network.tokens == ["Bearer one"]
    file.write_text("two")
    network.answers = [refused(Code.UNAUTHENTICATED, "CREDENTIALS_INVALID"), OK]
    blocking(transport.call(BEGIN, ASKED, PATIENCE))
    assert network.tokens == ["Bearer one", "Bearer one", "Bearer two"]
    assert not network.slept


def begin(
    network: Network, servers: str = "a:1", access: Access | None = None, *, reached: bool = False, **options: Any
) -> Answer[v1.BeginResponse] | None:
    transport = Transport(servers, access or Access(), lambda: network.now, cast(Any, network))
    transport._current = 0
    if reached:
        transport.heard()
    plan = Plan.of("k", "o", cast(Options, options)).fresh()
    return blocking(Core(transport, 30.0, "o").begin(plan))


def test_nothing_fails_open_before_its_time() -> None:
    """Not even where a server asks for more time than there is."""
    network = Network(pushed(60_000))
    assert begin(network, fail_open=2.0) is None
    assert network.now == pytest.approx(102.0)
    network = Network(GONE)
    assert begin(network, fail_open=2.0) is None
    assert network.now == pytest.approx(102.0)


NOBODY = Failed(Code.UNAVAILABLE, "DNS resolution failed for nowhere.invalid:1: Domain name not found")


def test_an_address_that_nobody_knows_is_no_outage() -> None:
    for answers in ((NOBODY,), (NOBODY, GONE)):
        with pytest.raises(CallError) as failed:
            begin(Network(*answers), "a:1,b:1", wait=0, fail_open=2.0)
        assert failed.value.unavailable
    assert begin(Network(NOBODY), reached=True, fail_open=2.0) is None


def test_a_begin_that_may_fail_open_asks_for_no_wait() -> None:
    there = v1.BeginResponse(in_progress=records.InProgress(owner="somebody"))
    network = Network(there)
    answer = begin(network, "a:1,b:1", wait=20.0, fail_open=3.0)
    assert answer is not None
    assert network.waits[:4] == [0.0, 1.0, 2.0, 4.0]
    assert network.timeouts[0] == pytest.approx(1.5)


def test_a_begin_that_may_fail_open_gives_each_server_its_share_of_the_time() -> None:
    for fail_open, share in ((1.0, 0.5), (0.15, 0.1), (60.0, 10.0)):
        network = Network(OK)
        assert begin(network, "a:1,b:1", fail_open=fail_open)
        assert network.timeouts == pytest.approx([share])


def test_whoever_answered_keeps_a_run_from_failing_open(tmp_path: Any) -> None:
    file = tmp_path / "token"

    class Rotating(Network):
        async def send(self, *args: Any) -> Any:
            file.write_text("two")
            return await super().send(*args)

    file.write_text("one")
    network = Rotating(refused(Code.UNAUTHENTICATED, "CREDENTIALS_INVALID"), GONE)
    with pytest.raises(CallError) as failed:
        begin(network, "127.0.0.1:1", Access(token_file=file), wait=0, fail_open=2.0)
    assert network.tokens[:2] == ["Bearer one", "Bearer two"]
    assert failed.value.unavailable
    for code in (Code.UNKNOWN, Code.CANCELLED):
        with pytest.raises(CallError):
            begin(Network(Failed(code, "no onced"), GONE), wait=0, fail_open=2.0)
    assert begin(Network(Failed(Code.UNKNOWN, "Stream removed"), GONE), fail_open=2.0) is None


def parse(name: str, access: Access | None = None) -> Server:
    return Server.parse(name, access or Access())


def test_addresses_are_checked_before_anything_is_sent() -> None:
    for good in ("127.0.0.1:7411", "http://onced.internal:7411", "[::1]:7411", "onced:7411"):
        assert parse(good).credentials is None
    for bad, why in {
        "127.0.0.1": "port",
        "etcd://127.0.0.1:1": "HOST:PORT",
        "a:b:c": "HOST:PORT",
        "http://a:1/path": "HOST:PORT",
        "user@a:1": "HOST:PORT",
        "a:99999": "HOST:PORT",
        ":1": "HOST:PORT",
    }.items():
        with pytest.raises(SetupError, match=why):
            parse(bad)
    with pytest.raises(SetupError, match="at least one"):
        Transport(" , ", Access(), lambda: 0.0, cast(Any, None))


def test_a_token_goes_over_no_network_without_tls_unless_that_is_allowed() -> None:
    for here in ("127.0.0.1:1", "localhost:1", "[::1]:1"):
        assert parse(here, Access(token="t"))
    with pytest.raises(SetupError, match="for all to read"):
        parse("10.0.0.1:1", Access(token="t"))
    assert parse("10.0.0.1:1", Access(token="t", token_in_plaintext=True))


def test_certificates_without_a_server_that_wants_them_are_a_mistake(tmp_path: Any) -> None:
    with pytest.raises(SetupError, match="certificates are for TLS"):
        Transport("a:1", Access(ca_file=tmp_path / "ca"), lambda: 0.0, cast(Any, None))
    with pytest.raises(SetupError, match="both"):
        Access(cert_file="c")
    with pytest.raises(SetupError, match="cannot read"):
        parse("https://a:1", Access(ca_file=tmp_path / "none"))
    (tmp_path / "empty").write_text("nothing")
    with pytest.raises(SetupError, match="no certificate in PEM"):
        parse("https://a:1", Access(ca_file=tmp_path / "empty"))
