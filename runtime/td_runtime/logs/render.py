"""From an event to the bytes of its line: one JSON object, or a pretty line for a terminal."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import msgspec
import structlog

from td_runtime.logs.masking import MASK, is_sensitive, redact
from td_runtime.logs.values import cut, plain

__all__ = ["Format", "Renderer"]

Format = Literal["json", "pretty"]

_OURS: Final = ("timestamp", "level", "host", "pid")
_BASE: Final = frozenset({*_OURS, "event", "worker"})
_PLAIN: Final = frozenset({str, float, bool, type(None)})
"""What needs no look at its value: most fields, several in every line."""

_encode: Final = msgspec.json.Encoder().encode
_second: tuple[int, str] = (0, "")
"""The second of the last line, and how it is written; replaced as a whole, for any thread."""


@dataclass(slots=True, kw_only=True)
class Renderer:
    """Renders the lines of one process. `pid` is the process's own and changes after a fork."""

    format: Format
    host: str
    worker: int | None
    max_line: int
    """Bytes; a longer line is shortened field by field and marked with `cut_from`."""
    pid: int = field(default_factory=os.getpid)
    _console: structlog.dev.ConsoleRenderer | None = None

    def render(self, level: str, fields: Mapping[str, Any]) -> bytes:
        """Give the line, newline included, without secrets and not longer than `max_line`.

        Args:
            level: The level's name.
            fields: `event` and everything else that was bound or passed.
        """
        line = self._complete(level, fields)
        text = redact(self._format(line))
        if len(text) > self.max_line:
            text = self._shorten(line, len(text))

        return text

    def _complete(self, level: str, fields: Mapping[str, Any]) -> dict[str, object]:
        """Put the fields that every line has in front, and make every value plain."""
        line: dict[str, object] = {
            "timestamp": _timestamp(),
            "level": level,
            "event": "",  # its place; it is one of the fields
            "host": self.host,
            "pid": self.pid,
            "worker": self.worker,
        }
        for key, value in fields.items():
            name, is_secret = _name_of(key if type(key) is str else str(key))
            if is_secret:
                line[name] = MASK
            else:
                line[name] = value if type(value) in _PLAIN else plain(value)

        return line

    def _format(self, line: dict[str, object]) -> bytes:
        if self.format == "pretty":
            return self._format_pretty(line)
        try:
            return _encode(line) + b"\n"
        except (UnicodeEncodeError, RecursionError, OverflowError):
            # Lone surrogates, as in a file name that is not UTF-8, cannot be encoded.
            return _encode(_replace_surrogates(line)) + b"\n"

    def _format_pretty(self, line: dict[str, object]) -> bytes:
        if self._console is None:
            self._console = structlog.dev.ConsoleRenderer(
                colors=not os.environ.get("NO_COLOR"), sort_keys=False
            )
        shown = {
            key: _escape(value) if type(value) is str else value
            for key, value in line.items()
            if not (key == "worker" and value is None)
        }
        exception = line.get("exception")
        if isinstance(exception, dict):
            shown["exception"] = exception["traceback"]
        text = self._console(None, "", shown)

        return text.encode("utf-8", "backslashreplace") + b"\n"

    def _shorten(self, line: dict[str, object], size: int) -> bytes:
        """Cut long values until the line fits; it stays one valid line and says how long it was."""
        limit = self.max_line // 2
        while limit >= 64:
            short = {
                key: value if key in _BASE - {"event"} else _shorten_value(value, limit)
                for key, value in line.items()
            }
            text = redact(self._format({**short, "cut_from": size}))
            if len(text) <= self.max_line:
                return text
            limit //= 2

        # Thousands of small fields: only those that every line has are sure to fit.
        base = {key: line[key] for key in line if key in _BASE}
        base["event"] = _shorten_value(line["event"], 64)

        return redact(self._format({**base, "cut_from": size}))


def _timestamp() -> str:
    """Write the time of day in UTC; all but its last digits are those of the line before."""
    global _second
    second, microsecond = divmod(time.time_ns() // 1000, 1_000_000)
    known = _second
    if known[0] != second:
        known = _second = (second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)))

    return f"{known[1]}.{microsecond:06d}Z"


@functools.lru_cache(maxsize=4096)
def _name_of(key: str) -> tuple[str, bool]:
    """Return what a field is called in the line, and whether its value is a secret.

    A line is about the process that wrote it: a caller's own `pid` gets another name. `worker` may
    be said by the supervisor, which speaks about workers and is none.
    """
    name = f"{key}_" if key in _OURS else key

    return name, is_sensitive(name)


def _shorten_value(value: object, limit: int) -> object:
    if isinstance(value, str):
        return cut(value, limit)
    if isinstance(value, dict) and value.keys() == {"type", "message", "traceback"}:
        return {key: cut(str(text), limit) for key, text in value.items()}
    if isinstance(value, dict | list):
        text = _encode(_replace_surrogates(value)).decode()
        return value if len(text) <= limit else cut(text, limit)

    return value


def _replace_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_replace_surrogates(key): _replace_surrogates(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_replace_surrogates(item) for item in value]

    return value


def _escape(text: str) -> str:
    """Show control characters instead of sending them: task code must not steer the terminal."""
    return text if text.isprintable() else repr(text)
