"""What a field's value becomes before it is rendered: plain JSON types, bounded and masked.

Only plain types are taken apart. Anything else shows its `repr`, for that is where a credential
masks its token; an encoder that walked its fields would print it.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Mapping
from datetime import date, datetime
from enum import Enum
from pathlib import PurePath
from types import TracebackType
from typing import Any, Final
from uuid import UUID

from td_runtime.logs.masking import MASK, is_sensitive, redact

__all__ = ["ExcInfo", "cut", "describe_exception", "plain", "read_exc_info"]

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]

_SCALARS: Final = frozenset({str, int, float, bool, type(None)})
_MAX_DEPTH: Final = 6
_MAX_ITEMS: Final = 1000
_INT64: Final = 1 << 63


def plain(value: object, depth: int = 0) -> object:
    """Give the plain JSON value that stands for *value*."""
    kind = type(value)
    if kind is int:
        # Readers of JSON hold integers in 64 bits; a longer one is kept exact as text.
        return value if -_INT64 <= value < 2 * _INT64 else str(value)  # type: ignore[operator]
    if kind in _SCALARS:
        return value
    if depth < _MAX_DEPTH:
        if isinstance(value, Mapping):
            return _plain_mapping(value, depth)
        if isinstance(value, list | tuple | set | frozenset):
            return _plain_items(value, depth)

    return _plain_object(value)


def _plain_mapping(mapping: Mapping[Any, object], depth: int) -> dict[str, object]:
    result: dict[str, object] = {}
    for count, (key, value) in enumerate(mapping.items()):
        if count == _MAX_ITEMS:
            result["…"] = f"{len(mapping) - count} more"
            break
        name = key if type(key) is str else str(plain(key, _MAX_DEPTH))
        result[name] = MASK if is_sensitive(name) else plain(value, depth + 1)

    return result


def _plain_items(items: Iterable[object], depth: int) -> list[object]:
    result: list[object] = []
    for item in items:
        if len(result) == _MAX_ITEMS:
            result.append("…")
            break
        result.append(plain(item, depth + 1))

    return result


def _plain_object(value: object) -> object:
    try:
        if isinstance(value, Enum):
            return plain(value.value, _MAX_DEPTH)
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, bytes | bytearray):
            return bytes(value).decode("utf-8", "backslashreplace")
        if isinstance(value, datetime | date):
            return value.isoformat()
        if isinstance(value, PurePath | UUID):
            return str(value)
        return repr(value)
    except Exception:  # noqa: BLE001  a value that cannot be shown must not cost the line
        return f"<{type(value).__name__} that cannot be shown>"


def cut(text: str, limit: int) -> str:
    """Shorten text to about *limit* bytes, keeping both ends; the middle says what is missing.

    Secrets are masked first: one that is cut in two would no longer be recognised.
    """
    raw = redact(text.encode("utf-8", "backslashreplace"))
    if len(raw) <= limit:
        return raw.decode("utf-8", "replace")
    half = max(limit // 2, 1)
    head = raw[:half].decode("utf-8", "ignore")
    tail = raw[-half:].decode("utf-8", "ignore")

    return f"{head}…[{len(raw) - 2 * half} bytes cut]…{tail}"


def read_exc_info(value: object) -> ExcInfo | None:
    """Understand what callers pass as `exc_info`: True, an exception, or the triple."""
    if isinstance(value, BaseException):
        return type(value), value, value.__traceback__
    if isinstance(value, tuple) and len(value) == 3 and isinstance(value[1], BaseException):
        return type(value[1]), value[1], value[2]

    return None


def describe_exception(info: ExcInfo, *, max_traceback: int) -> dict[str, str]:
    """Type, message and traceback; the traceback is cut in the middle at *max_traceback* bytes."""
    kind, error, trace = info
    name = kind.__qualname__
    if kind.__module__ not in ("builtins", "__main__"):
        name = f"{kind.__module__}.{name}"
    try:
        message = str(error)
    except Exception:  # noqa: BLE001  an error that cannot be shown must not cost the line
        message = "<a message that cannot be shown>"

    return {
        "type": name,
        "message": cut(message, max_traceback),
        "traceback": cut(_format_traceback(kind, error, trace), max_traceback),
    }


def _format_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> str:
    try:
        return "".join(traceback.format_exception(kind, error, trace)).rstrip("\n")
    except Exception:  # noqa: BLE001  as above
        return "".join(traceback.format_tb(trace)).rstrip("\n")
