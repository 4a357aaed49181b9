"""The last lines a process logged, in memory that it shares with its parent: for after its death.

A worker that dies says nothing more, and what it had sent to the log sink is out of reach. So each
line is also put here. There is no lock, which a death or a fork could leave locked: each line has a
place of its own, and is written there by one copy.
"""

from __future__ import annotations

import itertools
import mmap
import struct
from typing import Final

__all__ = ["LineRing"]

_SLOTS: Final = 64
_SLOT: Final = 1024
_HEADER: Final = struct.Struct("<QH")
"""A line's number, from 1, and its length."""
_ROOM: Final = _SLOT - _HEADER.size


class LineRing:
    """The last 64 lines, 1014 bytes of each; made before the fork.

    Its pages take memory only once they are written to.
    """

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _SLOTS * _SLOT)
        self._numbers = itertools.count(1)

    def put(self, line: bytes) -> None:
        """Keep *line* in place of the oldest one. For any thread."""
        number = next(self._numbers)
        text = line[:_ROOM]
        at = number % _SLOTS * _SLOT
        entry = _HEADER.pack(number, len(text)) + text
        self._memory[at : at + len(entry)] = entry

    def tail(self, run_id: str, count: int = 20) -> str | None:
        """Return the last lines since a run began here: its own, and the process's; None: none."""
        needle = run_id.encode()
        lines = self._lines()
        first = next((at for at, line in enumerate(lines) if needle in line), len(lines))
        found = [line for line in lines[first:] if needle in line or b"run_id" not in line]

        return b"".join(found[-count:]).decode("utf-8", "replace") or None

    def close(self) -> None:
        """Give the memory back."""
        self._memory.close()

    def _lines(self) -> list[bytes]:
        """Return what is there, the oldest first."""
        found: list[tuple[int, bytes]] = []
        for at in range(0, _SLOTS * _SLOT, _SLOT):
            number, length = _HEADER.unpack_from(self._memory, at)
            if number:
                start = at + _HEADER.size
                text = self._memory[start : start + min(length, _ROOM)]
                found.append((number, text.rstrip(b"\n") + b"\n"))

        return [line for _, line in sorted(found)]
