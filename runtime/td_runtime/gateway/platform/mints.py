"""The gateway's own count of mints: which PUT came when, and how it ended."""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Any, Final

MINTS_KEPT: Final = 20_000
SLOTS_KEPT: Final = 50_000


class Mint:
    """One PUT, from the arrival of its request to the moment its answer leaves.

    ``finished_at`` stays None while the request is in flight. Times are wall-clock seconds.
    """

    __slots__ = ("finished_at", "is_aborted", "slot", "started_at", "status")

    def __init__(self, slot: str) -> None:
        self.slot = slot
        self.started_at = time.time()
        self.finished_at: float | None = None
        self.status: int | None = None
        self.is_aborted = False

    def finish(self, status: int) -> None:
        """Note the answer just before it leaves: later, the client could be faster than we."""
        if self.finished_at is None:
            self.finished_at = time.time()
            self.status = status or None

    def abort(self) -> None:
        """Note that the client went away before it had an answer."""
        if self.finished_at is None:
            self.finished_at = time.time()
            self.is_aborted = True

    def to_dict(self) -> dict[str, Any]:
        """The mint as the statistics show it."""
        return {
            "slot": self.slot,
            "started_at": self.started_at,
            "finished_at": self.finished_at,
            "status": self.status,
            "aborted": self.is_aborted,
        }


class MintLog:
    """The newest mints, and PUTs counted per slot, since the process started.

    Both are bounded: the oldest mints and the slots longest unused are let go.
    """

    def __init__(self) -> None:
        self._mints: deque[Mint] = deque(maxlen=MINTS_KEPT)
        self._counts: OrderedDict[str, int] = OrderedDict()

    @property
    def counts(self) -> dict[str, int]:
        """PUTs by slot."""
        return dict(self._counts)

    @property
    def mints(self) -> list[dict[str, Any]]:
        """The newest mints, oldest first."""
        return [mint.to_dict() for mint in self._mints]

    @contextlib.contextmanager
    def record(self, slot: str) -> Iterator[Mint]:
        """Count a PUT on entry; on exit it is finished whatever happened."""
        mint = Mint(slot)
        self._mints.append(mint)
        self._count(slot)
        try:
            yield mint
        finally:
            mint.finish(0)

    def _count(self, slot: str) -> None:
        self._counts[slot] = self._counts.pop(slot, 0) + 1
        if len(self._counts) > SLOTS_KEPT:
            self._counts.popitem(last=False)
