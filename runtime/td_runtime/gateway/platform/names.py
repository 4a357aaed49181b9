"""Names of streams, which travel to clients in a header.

A header holds Latin-1 without control characters and without blanks at its ends. A name with
anything else is stored, and handed out, in the percent-encoded form of RFC 8187; clients use the
name that they are given, whatever it is.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote, unquote

_MARK: Final = "UTF-8''"
_FITTING: Final = re.compile(r"[\x20-\x7e\xa0-\xff]+")


def run_stream(run_id: str, key: str) -> str:
    """The stream store's name for a run's stream."""
    return to_header(f"runs/{run_id}/{key}")


def input_stream(run_id: str, stream_id: str) -> str:
    """The stream store's name for an input stream of a run."""
    return run_stream(run_id, f"$trigger.input:{stream_id}")


def session_stream(key: str, io: str) -> str:
    """The stream store's name for one direction of a session's main channel."""
    return to_header(f"sessions/{key}/{io}")


def channel_stream(key: str, name: str, io: str) -> str:
    """The stream store's name for one direction of a session's side channel.

    A session's key may hold anything, so it is a kind of its own: below ``sessions/`` the main
    channel of another session could have the same name.
    """
    return to_header(f"session-channels/{key}/{name}/{io}")


def to_header(name: str) -> str:
    """The name as a header can hold it; no two names become the same."""
    if _FITTING.fullmatch(name) and name == name.strip() and _MARK not in name:
        return name
    kind, _, rest = name.partition("/")

    return f"{kind}/{_MARK}{quote(rest)}"


def from_header(name: str) -> str:
    """The name that ``to_header`` was given."""
    kind, _, rest = name.partition("/")
    if not rest.startswith(_MARK):
        return name

    return f"{kind}/{unquote(rest.removeprefix(_MARK))}"
