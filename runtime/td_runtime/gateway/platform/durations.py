"""Durations and moments as official clients write them."""

from __future__ import annotations

import datetime as dt
import re
import time
from typing import Final

_DURATION: Final = re.compile(r"(?:[0-9]{1,9}(?:w|d|hr|h|m|s))+")
_PART: Final = re.compile(r"([0-9]+)(w|d|hr|h|m|s)")
_SECONDS: Final = {"w": 604_800, "d": 86_400, "hr": 3600, "h": 3600, "m": 60, "s": 1}


def parse_duration(text: str) -> float | None:
    """Return the seconds of ``1h30m`` and the like, None if it is not one."""
    if len(text) > 100 or not _DURATION.fullmatch(text):
        return None

    return float(sum(int(count) * _SECONDS[unit] for count, unit in _PART.findall(text)))


def parse_moment(text: str) -> float | None:
    """Return the epoch seconds of a date in ISO 8601 or of a duration from now; None: neither."""
    seconds = parse_duration(text)
    if seconds is not None:
        return time.time() + seconds
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt.UTC)

    return moment.timestamp()
