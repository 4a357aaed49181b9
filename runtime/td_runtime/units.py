"""Durations and sizes as people write them: "1m30s", "512MiB"."""

from __future__ import annotations

import re
from typing import Final, TypeAlias

__all__ = ["Bytes", "Seconds", "format_duration", "format_size", "parse_duration", "parse_size"]

#: A duration in seconds.
Seconds: TypeAlias = float
#: A size in bytes.
Bytes: TypeAlias = int

_SECONDS: Final = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_BYTES: Final = {
    "GiB": 1 << 30,
    "MiB": 1 << 20,
    "KiB": 1 << 10,
    "GB": 1_000_000_000,
    "MB": 1_000_000,
    "KB": 1_000,
    "B": 1,
}
_NUMBER: Final = r"(\d{1,12}(?:\.\d{1,6})?)"
_DURATION_PART: Final = re.compile(rf"{_NUMBER}(ms|[dhms])", re.ASCII)
_SIZE: Final = re.compile(rf"{_NUMBER} ?({'|'.join(_BYTES)})", re.ASCII)


def parse_duration(text: str) -> Seconds:
    """Read "250ms", "30s", "1m30s", "2h" or "1d": parts from the longest unit to the shortest.

    Raises:
        ValueError: The text is something else, a bare number included: its unit is a guess.
    """
    parts = _DURATION_PART.findall(text)
    units = [unit for _, unit in parts]
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(text)
    if units != [unit for unit in _SECONDS if unit in units]:
        raise ValueError(text)

    # Rounded to the microsecond: 250 * 0.001 + 1 must compare equal to 1.25.
    return round(sum(float(number) * _SECONDS[unit] for number, unit in parts), 6)


def parse_size(text: str) -> Bytes:
    """Read "64KiB", "10MB" or "1 GiB"; the result is whole bytes.

    Raises:
        ValueError: The text is something else, a bare number included: its unit is a guess.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(text)

    return int(float(match[1]) * _BYTES[match[2]])


def format_duration(seconds: Seconds) -> str:
    """Write seconds so that `parse_duration` reads them back: 90 is "1m30s"."""
    rest = round(seconds * 1000)
    text = ""
    for unit, factor in _SECONDS.items():
        count, rest = divmod(rest, round(factor * 1000))
        text += f"{count}{unit}" if count else ""

    return text or "0s"


def format_size(size: Bytes) -> str:
    """Write bytes with the largest binary unit that is exact: 65536 is "64KiB"."""
    for unit in ("GiB", "MiB", "KiB"):
        if size and size % _BYTES[unit] == 0:
            return f"{size // _BYTES[unit]}{unit}"

    return f"{size}B"
