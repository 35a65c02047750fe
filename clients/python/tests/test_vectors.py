"""What all client libraries agree on."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format, struct_pb2, symbol_database

from onced import UnfitError, fingerprint, http
from onced.v1 import idempotency_service_pb2 as v1


@pytest.fixture(scope="module")
def data(vectors: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(vectors.read_text())
    return loaded


def some(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    assert cases, "the vectors are missing"
    return cases


def test_bytes(data: dict[str, Any]) -> None:
    for case in some(data["bytes"]):
        assert fingerprint.of_bytes(base64.b64decode(case["data"])).hex() == case["digest"]


def test_json(data: dict[str, Any]) -> None:
    for case in some(data["json"]):
        assert fingerprint.canonical(fingerprint.parse(case["text"])).decode() == case["canonical"], case
        assert fingerprint.of_json_text(case["text"]).hex() == case["digest"], case
        assert fingerprint.of_json_text(case["text"].encode()).hex() == case["digest"], case


def test_json_that_is_refused(data: dict[str, Any]) -> None:
    for case in some(data["json_refused"]):
        with pytest.raises(UnfitError):
            print(case, fingerprint.of_json_text(case["text"]))


def test_fields(data: dict[str, Any]) -> None:
    for case in some(data["fields"]):
        selected = fingerprint.select(fingerprint.parse(case["text"]), case["pointers"])
        assert fingerprint.canonical(selected).decode() == case["canonical"], case
        assert fingerprint.of_json_text_fields(case["text"], case["pointers"]).hex() == case["digest"], case


def test_fields_that_are_refused(data: dict[str, Any]) -> None:
    for case in some(data["fields_refused"]):
        with pytest.raises(UnfitError):
            print(case, fingerprint.of_json_text_fields(case["text"], case["pointers"]))


def test_protobuf(data: dict[str, Any]) -> None:
    assert v1.BeginRequest.DESCRIPTOR
    for case in some(data["protobuf"]):
        kind = symbol_database.Default().GetSymbol(case["type"])
        message = json_format.ParseDict(case["json"], kind())
        assert base64.b64encode(fingerprint.encode(message)).decode() == case["encoded"], case
        assert fingerprint.of_message(message).hex() == case["digest"], case


def test_scopes(data: dict[str, Any]) -> None:
    for case in some(data["scope"]):
        assert http.scoped_key(case["scope"], case["key"]) == case["stored"], case


def test_requests(data: dict[str, Any]) -> None:
    for case in some(data["http"]):
        body = base64.b64decode(case["body"])
        assert http.fingerprint(case["method"], case["target"].encode(), body).hex() == case["digest"], case


def test_keys(data: dict[str, Any]) -> None:
    for case in some(data["keys"]):
        assert http.parse_key([case["header"].encode("latin-1")], scoped=False) == case["key"], case


def test_keys_that_are_refused(data: dict[str, Any]) -> None:
    for case in some(data["keys_refused"]):
        with pytest.raises(http.Problem) as refused:
            print(case, http.parse_key([case["header"].encode("latin-1")], scoped=False))
        assert refused.value.code == "IDEMPOTENCY_KEY_INVALID"


def test_values_are_as_good_as_text() -> None:
    value = {"b": [1, 2.5, None, True], "a": "€"}
    assert fingerprint.of_json(value) == fingerprint.of_json_text(json.dumps(value))
    assert fingerprint.of_fields(value, ["/a"]) == hashlib.sha256('{"/a":"€"}'.encode()).digest()
    for wrong in (2**53, float("nan"), float("inf"), "\ud800", {"a": object()}, {1: 2}, b"bytes"):
        with pytest.raises(UnfitError):
            fingerprint.of_json(wrong)


def test_maps_of_messages_are_in_the_order_of_their_keys() -> None:
    message = struct_pb2.Struct()
    message.update({"b": {"z": 1, "zz": 2, "": 3}, "": [True, None, "x"], "aa": 1.5, "a": {}})
    encoded = fingerprint.encode(message)
    assert struct_pb2.Struct.FromString(encoded) == message
    keys = [name for name in ("", "a", "aa", "b") if name]
    at = [encoded.index(b"\x0a" + bytes([len(name)]) + name.encode()) for name in keys]
    assert at == sorted(at)
    assert len(encoded) == len(message.SerializeToString())


def test_unknown_fields_are_refused_however_deep() -> None:
    unknown = bytes([0xF8, 0x07, 0x01])  # Field 127, which nothing has.
    assert fingerprint.of_message(v1.BeginRequest(key="k"))
    with pytest.raises(UnfitError, match=r"onced\.v1\.BeginRequest"):
        fingerprint.of_message(v1.BeginRequest.FromString(unknown))
    inner = v1.BeginRequest()
    inner.wait.MergeFromString(unknown)
    with pytest.raises(UnfitError):
        fingerprint.of_message(inner)
