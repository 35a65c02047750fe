"""Tokens and certificates."""

from pathlib import Path

import pytest

from onced.access import Access, header, is_loopback, system_roots
from onced.errors import SetupError


def test_a_token_is_read_again_when_it_is_old_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("one\n")
    bearer = Access(token_file=file).bearer(0.0)
    assert bearer is not None
    assert bearer.header(4.0) == "Bearer one"
    assert not bearer.renew("Bearer one", 4.0)
    file.write_text("two")
    assert bearer.header(8.0) == "Bearer one"
    assert bearer.header(9.0) == "Bearer two"
    assert bearer.renew("Bearer one", 9.0), "another call has read it meanwhile"
    file.unlink()
    assert bearer.header(100.0) == "Bearer two"
    with pytest.raises(SetupError, match="cannot read"):
        Access(token_file=file).bearer(0.0)


def test_a_token_is_one_line_of_text_and_is_never_shown() -> None:
    for wrong in ("", "a\nb", "\x01", "é"):
        with pytest.raises(SetupError):
            header(wrong, "it")
    assert "hunter2" not in repr(Access(token="hunter2"))
    with pytest.raises(SetupError) as error:
        header("hunter2\n", "it")
    assert "hunter2" not in str(error.value)


def test_loopback_is_told_from_the_network() -> None:
    for here in ("127.0.0.1", "127.9.9.9", "[::1]", "::1", "localhost"):
        assert is_loopback(here)
    for there in ("10.0.0.1", "onced", "2001:db8::1", "0.0.0.0", "localhost.example.com"):
        assert not is_loopback(there)


def test_the_system_trusts_somebody() -> None:
    assert b"BEGIN CERTIFICATE" in system_roots()
