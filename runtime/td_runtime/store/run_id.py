"""The ids of runs: `run_` and 25 characters that sort by the moment of acceptance."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

__all__ = ["RunIds", "first_id"]

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's: in ASCII order, no i, l, o, u
_PAIRS = [high + low for high in _ALPHABET for low in _ALPHABET]
_VALUES = {letter: value for value, letter in enumerate(_ALPHABET)}
_RANDOM_BITS = 77  # 25 characters hold 125 bits; 48 of them are milliseconds
_LAST_MOMENT = (1 << 48) - 1


class RunIds:
    """Makes run ids; each one is greater than all that this object made before.

    Args:
        clock: Seconds since the epoch. Standing still or going back does not disturb the order.
        after: An id that all ids are greater than.
    """

    def __init__(self, clock: Callable[[], float] = time.time, *, after: str | None = None) -> None:
        self._clock = clock
        self._last = 0 if after is None else _decode(after)

    def next(self) -> str:
        """Make an id that no other host or process makes."""
        moment = int(self._clock() * 1000) << _RANDOM_BITS
        # Not `secrets.randbits`, which takes as long as all the rest here.
        noise = int.from_bytes(os.urandom(10)) >> 81 - _RANDOM_BITS
        # The step within a millisecond is random, too: who sees one id cannot count on to the next.
        self._last = max(moment | noise, self._last + 1 + (noise >> 36))

        return "run_" + _encode(self._last)


def first_id(moment: int) -> str:
    """Return what no id of this moment, in milliseconds since the epoch, or later is less than."""
    return "run_" + _encode(min(max(0, moment), _LAST_MOMENT) << _RANDOM_BITS)


def _decode(run_id: str) -> int:
    """Read the 125 bits of an id; 0 for one that is none of ours."""
    value = 0
    for letter in run_id.removeprefix("run_"):
        value = value << 5 | _VALUES.get(letter, 0)

    return value if value < 1 << 125 else 0


def _encode(value: int) -> str:
    """Write 125 bits as 25 characters."""
    pairs = [_PAIRS[value >> shift & 1023] for shift in range(110, -1, -10)]

    return _ALPHABET[value >> 120 & 31] + "".join(pairs)
