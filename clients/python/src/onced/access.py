"""How servers are spoken to by TLS, who asks, and what to do where one or the other is refused."""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from onced.errors import SetupError

log = logging.getLogger("onced")

TOKEN_AGE = 5.0
"""How old a token that was read from a file may be when it is sent, in seconds."""

StrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class Access:
    """What a client shows of itself, and whom it trusts."""

    ca_file: StrPath | None = None
    cert_file: StrPath | None = None
    key_file: StrPath | None = None
    token: str | None = field(default=None, repr=False)
    token_file: StrPath | None = None
    token_in_plaintext: bool = False

    def __post_init__(self) -> None:
        if (self.cert_file is None) != (self.key_file is None):
            raise SetupError("a certificate is shown together with its key: give both cert_file and key_file")
        if self.token is not None and self.token_file is not None:
            raise SetupError("give token or token_file, and not both")

    @property
    def is_for_tls(self) -> bool:
        """Whether anything here is for TLS."""
        return self.ca_file is not None or self.cert_file is not None

    @property
    def has_token(self) -> bool:
        return self.token is not None or self.token_file is not None

    def credentials(self) -> grpc.ChannelCredentials:
        """What to connect by TLS with. The files are read now, and not again."""
        roots = system_roots() if self.ca_file is None else read_pem(self.ca_file, "CERTIFICATE", "no certificate")
        if self.cert_file is None or self.key_file is None:
            return grpc.ssl_channel_credentials(roots)
        cert = read_pem(self.cert_file, "CERTIFICATE", "no certificate")
        key = read_pem(self.key_file, "PRIVATE KEY", "no private key")
        return grpc.ssl_channel_credentials(roots, key, cert)

    def bearer(self, now: float) -> Bearer | None:
        """The token to send, if there is one."""
        return Bearer(self, now) if self.has_token else None


class Bearer:
    """A token, read again from its file."""

    def __init__(self, access: Access, now: float) -> None:
        self._file = access.token_file
        self._header = header(access.token, "the token") if access.token is not None else self._from_file()
        self._read = now
        self._mutex = threading.Lock()

    def header(self, now: float) -> str:
        """What to send. The file is small and local: reading it holds nobody up."""
        with self._mutex:
            if now - self._read >= TOKEN_AGE:
                self._again(now)
            return self._header

    def renew(self, sent: str, now: float) -> bool:
        """After `sent` was refused: whether there is another token to try."""
        with self._mutex:
            self._again(now)
            return self._header != sent

    def _again(self, now: float) -> None:
        if self._file is None:
            return
        self._read = now
        try:
            self._header = self._from_file()
        except SetupError as error:
            log.warning("the token stays as it was: %s", error)

    def _from_file(self) -> str:
        assert self._file is not None
        return header(read(self._file).decode("utf-8", "replace").strip(), os.fspath(self._file))


def header(token: str, what: str) -> str:
    """The header that shows a token."""
    if not token:
        raise SetupError(f"{what} is empty, and is to be a token")
    if not re.fullmatch(r"[\x20-\x7e]+", token):
        raise SetupError(f"{what} is to be a token: printable text on one line")
    return f"Bearer {token}"


def read(file: StrPath) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise SetupError(f"cannot read {os.fspath(file)}: {error.strerror}") from error


def read_pem(file: StrPath, label: str, without: str) -> bytes:
    text = read(file)
    if f"{label}-----".encode() not in text:
        raise SetupError(f"{os.fspath(file)} holds {without} in PEM")
    return text


def system_roots() -> bytes:
    """The CAs that this system trusts, in PEM. gRPC itself would trust those that it was shipped with."""
    loaded = ssl.create_default_context().get_ca_certs(binary_form=True)
    roots = [ssl.DER_cert_to_PEM_cert(root) for root in loaded] or list(_root_files())
    if not roots:
        raise SetupError("this system trusts no CA: name the one of the servers with ca_file")
    return "\n".join(roots).encode()


def _root_files() -> Iterator[str]:
    """The CAs in the system's directory, which OpenSSL itself reads one by one when it needs them."""
    directory = ssl.get_default_verify_paths().capath
    for file in sorted(Path(directory).glob("*.[0-9]")) if directory else ():
        text = file.read_text("ascii", "ignore")
        if "BEGIN CERTIFICATE" in text:
            yield text


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, where nobody listens in between."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def advice(text: str, tls: bool) -> str | None:
    """What to do about a connection that failed with this text, where no later attempt would fare better."""
    table = (
        # What BoringSSL says of the certificate that the server shows.
        ("unable to get local issuer certificate", TRUST),
        ("self signed certificate", TRUST),
        ("self-signed certificate", TRUST),
        ("certificate signature failure", TRUST),
        ("certificate has expired", "renew the server's certificate, or set the clock of this machine right"),
        ("certificate is not yet valid", "renew the server's certificate, or set the clock of this machine right"),
        ("CERTIFICATE_VERIFY_FAILED", TRUST),
        ("Peer name", "its certificate is for other names: call it by one of them"),
        ("Hostname Verification Check failed", "its certificate is for other names: call it by one of them"),
    )
    for sign, what in table:
        if sign in text:
            return what
    if tls and ("WRONG_VERSION_NUMBER" in text or "HTTP_REQUEST" in text):
        return "it does not speak TLS there: write http:// in place of https://, or name the port that does"
    if tls and "failed to connect" in text and ("Secure read failed" in text or "Unwrap failed" in text):
        # gRPC does not tell which alert the server sent; with TLS 1.3 it comes when the handshake is over.
        return (
            "it ended the connection: it wants a certificate (name one with cert_file and key_file), or does not "
            "take that of this client (is it signed by the server's tls.client_ca, and not expired?)"
        )
    if not tls and "speaks TLS only" in text:
        return "it speaks TLS: write https:// in front of its address"
    return None


TRUST = "its certificate is signed by nobody who is trusted here: name its CA with ca_file"
