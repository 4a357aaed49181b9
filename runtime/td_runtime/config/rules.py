"""What a plain value in the config file must be: one class a rule.

A rule reads a TOML value, or the text of an environment variable, and gives the typed value back
or refuses it in one sentence. It never looks at other keys; what two keys must be to each other is
in `decode`. Rules that look at the world around the file are in `places`.
"""
# ruff: noqa: ARG002, D102  the contract of `says`, `read`, `from_text` and `show` is Rule's

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from td_runtime.units import (
    format_duration,
    format_size,
    parse_duration,
    parse_size,
)

__all__ = [
    "Choice",
    "CronPattern",
    "Duration",
    "Entrypoint",
    "HookPlaces",
    "Number",
    "RefusedError",
    "Rule",
    "Site",
    "Size",
    "Switch",
    "TaskId",
    "TimeZone",
    "WholeNumber",
]

T = TypeVar("T")

_IDENTIFIER: Final = r"[^\W\d]\w*"
_ENTRYPOINT: Final = re.compile(rf"{_IDENTIFIER}(\.{_IDENTIFIER})*:{_IDENTIFIER}(\.{_IDENTIFIER})*")
_HOOK_PLACE: Final = re.compile(
    rf"{_IDENTIFIER}(\.{_IDENTIFIER})*(:{_IDENTIFIER}(\.{_IDENTIFIER})*)?"
)
_TASK_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./-]{0,127}")
_MAX_SHOWN: Final = 80  #: characters of a refused value that a message repeats


class RefusedError(ValueError):
    """A value breaks its rule; the message is the rule, ready to follow "must be"."""


@dataclass(frozen=True, slots=True)
class Site:
    """Where a value is read: what relative paths and references are resolved against."""

    folder: Path
    env: Mapping[str, str]


class Rule(Generic[T]):
    """One rule. Subclasses implement `read` and `says`."""

    __slots__ = ()

    #: The value used when the key is absent, in TOML notation; None: the field's own default.
    absent: Any = None

    def says(self) -> str:
        """What a value must be, ready to follow "must be"."""
        raise NotImplementedError

    def read(self, value: object, site: Site) -> T:
        """Give the typed value.

        Raises:
            RefusedError: The value breaks the rule.
        """
        raise NotImplementedError

    def from_text(self, text: str) -> object:
        """Turn the text of an environment variable into the TOML value it stands for."""
        return text

    def show(self, value: object) -> str:
        """The refused value, short enough for a message and without secrets."""
        try:
            text = json.dumps(value, ensure_ascii=False, default=str)
        except (TypeError, ValueError):
            text = repr(value)

        return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"

    def refuse(self) -> RefusedError:
        """The error that repeats the rule."""
        return RefusedError(f"must be {self.says()}")


@dataclass(frozen=True, slots=True)
class WholeNumber(Rule[int]):
    """An integer within bounds, both included."""

    low: int
    high: int

    def says(self) -> str:
        return f"a whole number from {self.low} to {self.high}"

    def read(self, value: object, site: Site) -> int:
        # `true` is an int to Python and a mistake to the author of the file.
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.refuse()
        if not self.low <= value <= self.high:
            raise self.refuse()

        return value

    def from_text(self, text: str) -> object:
        return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else text


@dataclass(frozen=True, slots=True)
class Number(Rule[float]):
    """A number within bounds, both included."""

    low: float
    high: float

    def says(self) -> str:
        return f"a number from {self.low:g} to {self.high:g}"

    def read(self, value: object, site: Site) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.refuse()
        if not self.low <= value <= self.high:
            raise self.refuse()

        return float(value)

    def from_text(self, text: str) -> object:
        return float(text) if re.fullmatch(r"-?[0-9]{1,18}(\.[0-9]{1,18})?", text) else text


@dataclass(frozen=True, slots=True)
class Switch(Rule[bool]):
    """True or false."""

    def says(self) -> str:
        return "true or false"

    def read(self, value: object, site: Site) -> bool:
        if not isinstance(value, bool):
            raise self.refuse()

        return value

    def from_text(self, text: str) -> object:
        return {"true": True, "false": False}.get(text.lower(), text)


@dataclass(frozen=True, slots=True)
class Choice(Rule[str]):
    """One of a few words."""

    words: tuple[str, ...]

    def says(self) -> str:
        return "one of " + ", ".join(f'"{word}"' for word in self.words)

    def read(self, value: object, site: Site) -> str:
        if isinstance(value, str) and value in self.words:
            return value
        near = difflib.get_close_matches(str(value).lower(), self.words, n=1)
        hint = f'; did you mean "{near[0]}"?' if near else ""

        raise RefusedError(f"{self.refuse()}{hint}")


@dataclass(frozen=True, slots=True)
class Duration(Rule[float]):
    """A duration with its unit, within bounds in seconds, both included."""

    low: float
    high: float

    def says(self) -> str:
        bounds = f"from {format_duration(self.low)} to {format_duration(self.high)}"

        return f'a duration {bounds}, such as "250ms", "30s", "1m30s", "2h" or "1d"'

    def read(self, value: object, site: Site) -> float:
        try:
            seconds = parse_duration(value) if isinstance(value, str) else None
        except ValueError:
            seconds = None
        if seconds is None or not self.low <= seconds <= self.high:
            raise self.refuse()

        return seconds


@dataclass(frozen=True, slots=True)
class Size(Rule[int]):
    """A size with its unit, within bounds in bytes, both included."""

    low: int
    high: int

    def says(self) -> str:
        bounds = f"from {format_size(self.low)} to {format_size(self.high)}"

        return f'a size {bounds}, such as "64KiB", "512MiB" or "10MB"'

    def read(self, value: object, site: Site) -> int:
        try:
            size = parse_size(value) if isinstance(value, str) else None
        except ValueError:
            size = None
        if size is None or not self.low <= size <= self.high:
            raise self.refuse()

        return size


@dataclass(frozen=True, slots=True)
class TaskId(Rule[str]):
    """What `trigger` calls a task."""

    def says(self) -> str:
        return "1 to 128 letters, digits, _ . / or -, starting with a letter or a digit"

    def read(self, value: object, site: Site) -> str:
        if not isinstance(value, str) or not _TASK_ID.fullmatch(value):
            raise self.refuse()

        return value


@dataclass(frozen=True, slots=True)
class Entrypoint(Rule[str]):
    """Where a task's function is."""

    def says(self) -> str:
        return '"module:function", such as "tasks:stream_book" or "agents.tasks:answer"'

    def read(self, value: object, site: Site) -> str:
        if not isinstance(value, str) or not _ENTRYPOINT.fullmatch(value):
            raise self.refuse()

        return value


@dataclass(frozen=True, slots=True)
class HookPlaces(Rule[tuple[str, ...]]):
    """Where hooks are: one place or several."""

    def says(self) -> str:
        return (
            '"module" or "module:object", such as "lifecycle" or "tasks:hooks", or a list of them'
        )

    def read(self, value: object, site: Site) -> tuple[str, ...]:
        places: list[str] = []
        for place in value if isinstance(value, list) else [value]:
            if not isinstance(place, str) or not _HOOK_PLACE.fullmatch(place):
                raise self.refuse()
            places.append(place)

        return tuple(places)

    def from_text(self, text: str) -> object:
        return text.split(",")


@dataclass(frozen=True, slots=True)
class CronPattern(Rule[str]):
    """When a task runs by itself."""

    def says(self) -> str:
        return 'a cron pattern of five fields, such as "*/15 * * * *" or "0 9 * * MON-FRI"'

    def read(self, value: object, site: Site) -> str:
        from td_runtime.schedule import CronSimError, Schedule

        if not isinstance(value, str):
            raise self.refuse()
        try:
            Schedule(pattern=value)
        except CronSimError as error:
            raise RefusedError(f"{self.refuse()}; {str(error).lower()}") from error

        return value


@dataclass(frozen=True, slots=True)
class TimeZone(Rule[str]):
    """An IANA time zone that this machine knows."""

    def says(self) -> str:
        return 'a time zone that this machine knows, such as "UTC" or "Europe/Berlin"'

    def read(self, value: object, site: Site) -> str:
        from zoneinfo import available_timezones

        zones = available_timezones()
        if isinstance(value, str) and value in zones:
            return value
        near = difflib.get_close_matches(str(value), zones, n=1)
        hint = f'; did you mean "{near[0]}"?' if near else ""

        raise RefusedError(f"{self.refuse()}{hint}")
