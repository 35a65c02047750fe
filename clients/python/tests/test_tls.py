"""TLS, client certificates and tokens, and what is said where they are set up wrong."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme
from conftest import HANGS, Server

import onced


@dataclass
class Certificates:
    """A CA, and what it signed; and another CA."""

    directory: Path

    def __post_init__(self) -> None:
        self.ca, self.other_ca = trustme.CA(), trustme.CA()
        self.ca.cert_pem.write_to_path(self.path("ca"))
        self.other_ca.cert_pem.write_to_path(self.path("other-ca"))
        self.issue("server", self.ca, "127.0.0.1", "localhost")
        self.issue("stranger", self.ca, "elsewhere.example")
        self.issue("caller", self.ca, "orders.internal")
        self.issue("forged", self.other_ca, "orders.internal")

    def path(self, name: str) -> str:
        return str(self.directory / f"{name}.pem")

    def issue(self, name: str, ca: trustme.CA, *names: str) -> None:
        issued = ca.issue_cert(*names)
        issued.private_key_pem.write_to_path(self.path(f"{name}-key"))
        for number, part in enumerate(issued.cert_chain_pems):
            part.write_to_path(self.path(name), append=number > 0)

    def serve(self, name: str, *arguments: str) -> Server:
        return Server("--tls-cert", self.path(name), "--tls-key", self.path(f"{name}-key"), *arguments)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def tls(certificates: Certificates) -> Iterator[str]:
    server = certificates.serve("server")
    yield server.address
    server.kill()


@pytest.fixture(scope="module")
def mtls(certificates: Certificates) -> Iterator[str]:
    ca = certificates.path("ca")
    server = certificates.serve("server", "--tls-client-ca", ca, "--tls-client-auth", "required")
    yield server.address
    server.kill()


def once(servers: str, key: str, **settings: Any) -> Any:
    """One run in a thread, and one in asyncio."""
    with onced.Client(servers, **settings) as client:
        value = client.once(key, wait=0).run(lambda _: "it ran").value

    async def again() -> Any:
        async def fails(_: onced.AsyncClaim) -> None:
            pytest.fail("it ran twice")

        async with onced.AsyncClient(servers, **settings) as client:
            return (await client.once(key, wait=0).run(fails)).value

    assert asyncio.run(again()) == value
    return value


def failure(servers: str, key: str, **settings: Any) -> str:
    """Why nothing runs, said long before the time is up, and no reason to fail open."""

    async def work(_: onced.AsyncClaim) -> None:
        pytest.fail("it ran")

    async def run() -> str:
        async with onced.AsyncClient(servers, timeout=600, **settings) as client:
            with pytest.raises(onced.NotBegunError) as refused:
                await asyncio.wait_for(client.once(key, wait=0, fail_open=300).run(work), HANGS)
            assert client.unprotected_runs == 0
            return str(refused.value)

    with onced.Client(servers, timeout=600, **settings) as client:
        with pytest.raises(onced.NotBegunError) as refused:
            client.once(key, wait=0, fail_open=300).run(lambda _: pytest.fail("it ran"))
        assert not refused.value.unavailable
    assert asyncio.run(run())
    return str(refused.value)


def test_servers_are_called_by_tls(tls: str, certificates: Certificates, key: str) -> None:
    ca = certificates.path("ca")
    assert once(f"https://{tls}", key, ca_file=ca) == "it ran"
    assert once(f"https://localhost:{tls.rpartition(':')[2]}", f"{key}-2", ca_file=ca) == "it ran"


def test_a_server_that_nobody_vouches_for_is_not_called(tls: str, certificates: Certificates, key: str) -> None:
    assert "ca_file" in failure(f"https://{tls}", key, ca_file=certificates.path("other-ca"))
    assert "ca_file" in failure(f"https://{tls}", key)


def test_a_server_of_another_name_is_not_called(certificates: Certificates, key: str) -> None:
    stranger = certificates.serve("stranger")
    assert "other names" in failure(f"https://{stranger.address}", key, ca_file=certificates.path("ca"))
    stranger.kill()


def test_tls_and_none_are_told_apart(tls: str, server: str, certificates: Certificates, key: str) -> None:
    assert "does not speak TLS" in failure(f"https://{server}", key, ca_file=certificates.path("ca"))
    assert "speaks TLS" in failure(f"http://{tls}", key)


def test_callers_show_certificates(mtls: str, certificates: Certificates, key: str) -> None:
    path, servers = certificates.path, f"https://{mtls}"
    shown = {"cert_file": path("caller"), "key_file": path("caller-key")}
    assert once(servers, key, ca_file=path("ca"), **shown) == "it ran"
    assert "cert_file" in failure(servers, key, ca_file=path("ca"))
    forged = {"cert_file": path("forged"), "key_file": path("forged-key")}
    assert "does not take that of this client" in failure(servers, key, ca_file=path("ca"), **forged)


def token(binary: str) -> tuple[str, str]:
    """A token, and the line by which a server knows it."""
    made = subprocess.run([binary, "token", "new", "orders"], check=True, capture_output=True, text=True)
    said = made.stdout.split() if "sha256:" in made.stdout else (made.stdout + made.stderr).split()
    secret = next(word for word in said if word.startswith("onced_"))
    digest = next(word for word in said if word.startswith("sha256:"))
    return secret, f"orders = {digest}\n"


def test_tokens(tmp_path: Path, key: str) -> None:
    secret, line = token(os.environ["ONCED_BINARY"])
    (tmp_path / "tokens").write_text(line)
    server = Server("--access-tokens", str(tmp_path / "tokens"))
    assert once(server.address, key, token=secret) == "it ran"
    with onced.Client(server.address, token="no-token-at-all") as client:
        with pytest.raises(onced.NotBegunError) as refused:
            client.once(key, fail_open=0.2).run(lambda _: pytest.fail("it ran"))
        assert refused.value.reason == "CREDENTIALS_INVALID"
    with onced.Client(server.address) as client:
        with pytest.raises(onced.NotBegunError) as refused:
            client.once(key).run(lambda _: pytest.fail("it ran"))
        assert refused.value.reason == "CREDENTIALS_MISSING"
    file = tmp_path / "token"
    file.write_text("an-old-one")
    with onced.Client(server.address, token_file=file) as client:
        file.write_text(f"{secret}\n")
        assert client.once(key).run(lambda _: pytest.fail("it ran twice")).value == "it ran"
    server.kill()
