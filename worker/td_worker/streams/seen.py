"""Which envelopes a reader has seen, so that a record that was sent twice is read once."""

from __future__ import annotations

import re
from collections import OrderedDict
from typing import Final

DEDUPE_WINDOW: Final = 5000
"""Writers, and ids of other clients, that are remembered."""

_OWN_ID: Final = re.compile(r"([A-Za-z0-9_-]{12})-([0-9]{1,18})")
"""`<writer nonce>-<n>`: the official clients' ids, of 7 and 21 letters, do not look like this."""

_MOST_MISSING: Final = 10_000


class Seen:
    """
    The envelopes of a stream that a reader has seen, in bounded memory.

    Several processes write one stream, and between a batch and its second copy any number of
    records of the others may lie. So of our own writers, who number their records, all numbers are
    remembered, for the last `window` writers; of other clients' ids the last `window`.
    """

    def __init__(self, window: int = DEDUPE_WINDOW) -> None:
        self._window = window
        self._known: OrderedDict[str, _Numbers | None] = OrderedDict()

    def add(self, envelope_id: str) -> bool:
        """Remember an id; False when it is known."""
        own = _OWN_ID.fullmatch(envelope_id)
        if own is None:
            return self._add(envelope_id, None)
        nonce, number = own[1], int(own[2])
        numbers = self._known.get(nonce)
        if numbers is None:
            return self._add(nonce, _Numbers(number))
        self._known.move_to_end(nonce)

        return numbers.add(number)

    def _add(self, key: str, numbers: _Numbers | None) -> bool:
        if key in self._known:
            return False
        self._known[key] = numbers
        if len(self._known) > self._window:
            self._known.popitem(last=False)

        return True


class _Numbers:
    """
    The numbers seen of one writer: all below `next` but the missing ones.

    Threads that share a writer may overtake each other, by any distance while the buffer is full;
    but no more numbers are missing than threads are waiting.
    """

    __slots__ = ("_missing", "_next")

    def __init__(self, first: int) -> None:
        # A reader that begins in the middle may just have missed the one before.
        self._missing = set(range(max(0, first - _MOST_MISSING // 10), first))
        self._next = first + 1

    def add(self, number: int) -> bool:
        if number == self._next:
            self._next += 1
            return True
        if number < self._next:
            if number not in self._missing:
                return False
            self._missing.remove(number)
            return True
        self._missing.update(range(max(self._next, number - _MOST_MISSING), number))
        self._next = number + 1
        if len(self._missing) > _MOST_MISSING:
            self._missing = set(sorted(self._missing)[-_MOST_MISSING // 2 :])

        return True
