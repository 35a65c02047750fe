"""Digests of requests, so that a key that is used for another request is an error.

All of them are SHA-256, and come out the same in every client library.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

import rfc8785
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from onced.errors import UnfitError

INDEX = r"0|[1-9][0-9]{0,17}"
"""What is an index of a list, in a JSON pointer."""


def of_bytes(data: bytes) -> bytes:
    """Of bytes as they are."""
    return hashlib.sha256(data).digest()


def of_json(value: Any) -> bytes:
    """Of a JSON value (None, bool, int, float, str, list, dict), however it is laid out: by RFC 8785."""
    return of_bytes(canonical(value))


def of_json_text(text: str | bytes) -> bytes:
    """Of JSON as it came, however it is laid out."""
    return of_json(parse(text))


def of_fields(value: Any, pointers: Iterable[str]) -> bytes:
    """Of those parts of a JSON value that JSON pointers (RFC 6901) name. What is not there is left out."""
    return of_json(select(value, pointers))


def of_json_text_fields(text: str | bytes, pointers: Iterable[str]) -> bytes:
    """Of those parts of JSON as it came that JSON pointers (RFC 6901) name."""
    return of_fields(parse(text), pointers)


def of_message(message: Message) -> bytes:
    """Of a protobuf message: its name, and its deterministic encoding."""
    return of_bytes(message.DESCRIPTOR.full_name.encode() + b"\0" + encode(message))


def canonical(value: Any) -> bytes:
    """The canonical form of a JSON value, by RFC 8785."""
    try:
        return rfc8785.dumps(value)
    except rfc8785.IntegerDomainError as error:
        raise UnfitError(
            "an integer beyond 2^53 - 1, which not every language reads the same: write it as a string"
        ) from error
    except rfc8785.FloatDomainError as error:
        raise UnfitError("NaN or an infinity, which JSON does not have") from error
    except (rfc8785.CanonicalizationError, UnicodeError) as error:
        raise UnfitError(f"this has no canonical JSON: {error}") from error
    except RecursionError as error:
        raise UnfitError("this is nested too deep") from error


def parse(text: str | bytes) -> Any:
    """Reads JSON as it came. A key twice in an object is refused: readers differ in which one counts."""
    try:
        text = text.decode() if isinstance(text, bytes) else text
        return json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)
    except UnfitError:
        raise
    except RecursionError as error:
        raise UnfitError("this is nested too deep") from error
    except ValueError as error:
        raise UnfitError(f"this is no JSON: {error}") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise UnfitError(f"the key {twice!r} twice in an object")
    return members


def _no_constant(name: str) -> Any:
    raise UnfitError(f"{name}, which JSON does not have")


def select(value: Any, pointers: Iterable[str]) -> dict[str, Any]:
    """The parts of a JSON value that pointers name, by pointer."""
    if isinstance(pointers, str):
        raise TypeError("give a list of pointers, and not one string")
    selected = {pointer: part for pointer in pointers for part in _at(value, pointer)}
    if not selected:
        raise UnfitError("nothing is there at any of the pointers")
    return selected


def _at(value: Any, pointer: str) -> Iterator[Any]:
    """What a pointer points at, if it is there."""
    if (pointer and not pointer.startswith("/")) or re.search(r"~(?![01])", pointer):
        raise UnfitError(f"{pointer!r} is no JSON pointer (RFC 6901)")
    for token in pointer.split("/")[1:]:
        name = token.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict) and name in value:
            value = value[name]
        elif isinstance(value, (list, tuple)) and re.fullmatch(INDEX, name) and int(name) < len(value):
            value = value[int(name)]
        else:
            return
    yield value


def encode(message: Message) -> bytes:
    """The encoding of a message: fields by number, map entries by key.

    That of the library orders map entries otherwise when one key begins with another.
    """
    if len(UnknownFieldSet(message)):
        name = message.DESCRIPTOR.full_name
        raise UnfitError(f"a {name} with unknown fields: where they stand in its encoding is not certain")
    fields = sorted(message.ListFields(), key=lambda present: present[0].number)
    return b"".join(_field(message, field, value) for field, value in fields)


def _field(message: Message, field: FieldDescriptor, value: Any) -> bytes:
    if field.is_extension or field.type == FieldDescriptor.TYPE_GROUP:
        raise UnfitError(f"{field.full_name} is an extension or a group")
    if field.message_type is None:
        return _alone(message, field.name, value)
    if field.message_type.GetOptions().map_entry:
        keys = sorted(value, key=lambda key: key.encode() if isinstance(key, str) else key)
        return b"".join(_entry(message, field, key, value[key]) for key in keys)
    parts = value if field.is_repeated else [value]
    return b"".join(_with_length(field.number, encode(part)) for part in parts)


def _entry(message: Message, field: FieldDescriptor, key: Any, value: Any) -> bytes:
    if not isinstance(value, Message):
        return _alone(message, field.name, {key: value})
    # The key of an entry stands before its value, here an empty one of two bytes.
    whole = _alone(message, field.name, {key: type(value)()})
    start = len(_varint(field.number << 3 | 2))
    while whole[start] >= 0x80:
        start += 1
    return _with_length(field.number, whole[start + 1 : -2] + _with_length(2, encode(value)))


def _alone(message: Message, name: str, value: Any) -> bytes:
    """The encoding of one field, without messages that have several."""
    return type(message)(**{name: value}).SerializeToString()


def _with_length(number: int, encoded: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(encoded)) + encoded


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])
