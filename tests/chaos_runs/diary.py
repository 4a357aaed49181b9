"""What the campaign did to whom, and when: the evidence for whom a death is to be blamed on."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import msgspec


class Strike(msgspec.Struct, frozen=True, kw_only=True):
    """One attack."""

    at: float
    """Seconds on the monotonic clock."""
    wall: float
    """The same moment, seconds since the epoch."""
    what: str
    """`kill`, `stop`, `continue`: a worker; `kill supervisor`."""
    pid: int


class Diary:
    """Keeps every attack of a campaign, and writes it down.

    Args:
        path: One line an attack.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.strikes: list[Strike] = []

    def note(self, what: str, pid: int) -> None:
        """Keep an attack that happens now."""
        strike = Strike(at=time.monotonic(), wall=time.time(), what=what, pid=pid)
        self.strikes.append(strike)
        with self._path.open("ab") as lines:
            lines.write(msgspec.json.encode(strike) + b"\n")

    def counts(self) -> Counter[str]:
        """Count the attacks by what they were."""
        return Counter(strike.what for strike in self.strikes)
