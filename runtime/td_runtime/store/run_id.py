"""The ids of runs: `run_` and 25 characters that sort by the moment of acceptance."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

__all__ = ["RunIds"]

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's: in ASCII order, no i, l, o, u
_PAIRS = [high + low for high in _ALPHABET for low in _ALPHABET]
_RANDOM_BITS = 77  # 25 characters hold 125 bits; 48 of them are milliseconds


class RunIds:
    """Makes run ids; each one is greater than all that this object made before.

    Args:
        clock: Seconds since the epoch. Standing still or going back does not disturb the order.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._last = 0

    def next(self) -> str:
        """Make an id that no other host or process makes."""
        moment = int(self._clock() * 1000) << _RANDOM_BITS
        noise = secrets.randbits(_RANDOM_BITS - 1)
        # The step within a millisecond is random, too: who sees one id cannot count on to the next.
        self._last = max(moment | noise, self._last + 1 + (noise >> 36))

        return "run_" + _encode(self._last)


def _encode(value: int) -> str:
    """Write 125 bits as 25 characters."""
    pairs = [_PAIRS[value >> shift & 1023] for shift in range(110, -1, -10)]

    return _ALPHABET[value >> 120 & 31] + "".join(pairs)
