"""What both HTTP clients need: whom to reach directly, and how long a server asks to wait."""

from __future__ import annotations

from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from time import time


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that `retry-after-ms` or `Retry-After` asks to wait, None without."""
    try:
        if milliseconds := headers.get("retry-after-ms"):
            return max(0.0, float(milliseconds) / 1000)
        if after := headers.get("retry-after"):
            return max(0.0, float(after) if _is_number(after) else _until(after))
    except ValueError:
        return None

    return None


def is_loopback(host: str) -> bool:
    """Say whether `host` is this machine by name or address."""
    return host == "localhost" or host.startswith("127.") or host == "::1"


def say(error: BaseException) -> str:
    """Return an error's kind and text; many of the network's errors have no text."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdecimal()


def _until(date: str) -> float:
    return parsedate_to_datetime(date).timestamp() - time()
