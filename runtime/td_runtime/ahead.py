"""How many runs a worker is given beyond its places. Knows no clock and no worker."""

from __future__ import annotations

from typing import Final

__all__ = ["Ahead"]

_LONG: Final = 1.0
_HORIZON: Final = 0.02
"""Seconds of work that may wait in a worker while others might be free to do it."""
_MOST: Final = 512
_WEIGHT: Final = 0.2


class Ahead:
    """What one worker may be given ahead, by how long its last attempts took.

    A run that has to wait for the commit of another one's outcome, and for the way to the
    supervisor and back, begins a millisecond or two after its place is free. That is nothing for
    a run of a second, and twenty times its own work for a tiny one. So a worker of tiny runs gets
    as many as it does in 20 ms, and one of long runs none: those would wait in it while others
    are idle.
    """

    def __init__(self) -> None:
        self._seconds = _LONG

    def ended(self, took: float | None) -> None:
        """Take note of an attempt; *took* is None for a run that was given back, not begun."""
        if took is None:
            self._seconds = _LONG
        elif took >= self._seconds:
            # One long run outweighs many tiny ones: others would wait behind the next one.
            self._seconds = min(took, _LONG)
        else:
            self._seconds += (took - self._seconds) * _WEIGHT

    def most(self, places: int) -> int:
        """Return how many a worker of so many places may have beyond them."""
        return min(_MOST, int(places * _HORIZON / max(self._seconds, 1e-6)))
