"""Packets: values as official clients send them, a text and the name of its encoding."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from td_runtime.gateway.exchange import json_reply
from td_runtime.gateway.platform.answers import RefusalError

JSON: Final = "application/json"
SUPER_JSON: Final = "application/super+json"
TEXT: Final = "text/plain"
STORED: Final = "application/store"
"""No encoding: the data say where the packet is."""

_SEPARATOR: Final = re.compile(r"(?<!\\)\.")


def decode_packet(data: Any, encoding: str | None, *, name: str) -> bytes:
    """Return a packet as the JSON text that a task is given.

    Args:
        data: The value; a text in all encodings but plain JSON.
        encoding: How it is encoded; None is plain JSON.
        name: What it is, for the refusal.

    Raises:
        RefusalError: 400, it is not what its encoding says, or that is not known here.
    """
    if data is None or data is msgspec.UNSET:
        return b"null"
    match encoding:
        case None | "application/json":
            return msgspec.json.encode(data)
        case "text/plain" if isinstance(data, str):
            return msgspec.json.encode(data)
        case "application/super+json" if isinstance(data, str):
            return msgspec.json.encode(_decode_super(data, name))
        case "text/plain" | "application/super+json":
            raise _refusal(f"{name} must be a text when {name}Type is {encoding}")
        case "application/store":
            raise _refusal(
                f"{name}Type application/store is not supported here: send the {name} itself"
            )

    raise _refusal(
        f"{name}Type {encoding!r} is not supported; it must be {JSON}, {SUPER_JSON} or {TEXT}"
    )


def _decode_super(text: str, name: str) -> Any:
    """Return what SuperJSON encodes, as plain JSON: dates stay texts, sets are lists."""
    try:
        document = msgspec.json.decode(text)
        value = document["json"]
        values = (document.get("meta") or {}).get("values")
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError, RecursionError):
        raise _refusal(f"{name} is no SuperJSON text") from None
    if values is None:
        return value
    try:
        return _restore(value, values)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise _refusal(f"{name} is no SuperJSON text: its meta do not fit it") from None


def _restore(value: Any, notes: Any) -> Any:
    """Turn the numbers back that JSON cannot say. *notes* is a tree of type names by path."""
    if isinstance(notes, dict):
        for path, below in notes.items():
            value = _change(value, _split(path), below)
        return value
    kind = notes[0]
    if len(notes) > 1:
        value = _restore(value, notes[1])
    if kind == "bigint":
        return int(value)
    if kind == "map":
        return {str(key): each for key, each in value}

    return value


def _change(value: Any, path: list[str], notes: Any) -> Any:
    if not path:
        return _restore(value, notes)
    key: Any = int(path[0]) if isinstance(value, list) else path[0]
    value[key] = _change(value[key], path[1:], notes)

    return value


def _split(path: str) -> list[str]:
    """Return the keys of a path; a dot within a key is escaped."""
    return [key.replace("\\.", ".").replace("\\\\", "\\") for key in _SEPARATOR.split(path)]


def _refusal(text: str) -> RefusalError:
    return RefusalError(json_reply(400, {"error": text}))
