"""Where rows are kept: the interface, and the plain one inside this process."""

from __future__ import annotations

import secrets
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, Protocol

from td_sharedcache.row import NOTHING, Gap, Row
from td_sharedcache.slot import Slot


class Stored(NamedTuple):
    """A row, and when it was used."""

    slot: Slot
    row: Row
    used_at: float
    """Wall-clock time, a minute old at most."""


class Store(Protocol):
    """Rows by slot. Nothing here waits.

    Every method may raise `StoreBusyError` (try again in a moment) or `StoreDownError`.
    """

    def load(self, slot: Slot) -> Row:
        """Give the slot's row; a slot without one has a gap."""
        ...

    def replace(self, slot: Slot, expected: str, row: Row) -> bool:
        """Put a row in the place of the one with the id `expected`, if it is still there."""
        ...

    def rows(self) -> list[Stored]:
        """Give all rows there are."""
        ...

    def clear(self) -> None:
        """Drop every row, so that nothing based on one of them can be put back."""

    def stamp(self) -> object:
        """Give a value that stays equal for as long as no row has changed; costs less than a look.

        Values that are not equal prove nothing.
        """
        ...

    def idle_holders(self) -> frozenset[int] | None:
        """Give the processes that keep the store to themselves asleep, None if it is unknown."""
        ...

    def stripe(self, slot: Slot) -> AbstractContextManager[bool]:
        """Hold the lock under which a slot is minted, or say that somebody else does."""
        ...

    def close(self) -> None:
        """Give back what the store holds open; the next call opens it again."""


class MemoryStore:
    """Rows that no other process sees: for tests, and for slots whose shared rows are lost.

    Its lock is always free, since the flights of one process already mint a slot once.
    """

    def __init__(self) -> None:
        self._rows: dict[Slot, Row] = {}
        self._absent: Row = NOTHING

    def load(self, slot: Slot) -> Row:
        """Give the slot's row."""
        return self._rows.get(slot, self._absent)

    def replace(self, slot: Slot, expected: str, row: Row) -> bool:
        """Put a row in the place of the one with the id `expected`."""
        if self.load(slot).id != expected:
            return False
        self._rows[slot] = row

        return True

    def rows(self) -> list[Stored]:
        """Give all rows; nobody notes when they are used."""
        return [Stored(slot, row, row.at) for slot, row in list(self._rows.items())]

    def put(self, slot: Slot, row: Row) -> None:
        """Put a row whatever was there."""
        self._rows[slot] = row

    def forget(self, slot: Slot) -> None:
        """Drop the row of one slot."""
        self._rows.pop(slot, None)

    def clear(self) -> None:
        """Drop every row; what was minted before cannot be installed any more."""
        self._absent = Gap(id=secrets.token_hex(8), at=0.0, until=0.0)
        self._rows.clear()

    def stamp(self) -> object:
        """Prove nothing: a look costs no more."""
        return object()

    def idle_holders(self) -> frozenset[int] | None:
        """Nobody else is there."""
        return None

    def stripe(self, slot: Slot) -> AbstractContextManager[bool]:  # noqa: ARG002  one for all
        """Hold nothing."""
        return nullcontext(True)

    def close(self) -> None:
        """Nothing is open."""
