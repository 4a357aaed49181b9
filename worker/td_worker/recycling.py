"""When a worker has done enough: so many runs, or so much memory, looked at between runs."""

from __future__ import annotations

import random
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Final

__all__ = ["Retirement", "resident_bytes"]

_JITTER: Final = 0.1
"""Up to this part of a limit is taken off, so that workers do not all leave at once."""

_STATM: Final = Path("/proc/self/statm")


class Retirement:
    """Counts the runs of one worker, and says once when it is to leave.

    Args:
        leave: Called with the reason, `runs` or `memory`, the runs so far, and the bytes in memory.
        max_runs: How many runs it executes at most; None: any number.
        max_memory: Bytes above which it leaves; None: it may grow.
        memory: Returns the bytes in memory.
        jitter: Returns a number in [0, 1), as `random.random` does.
    """

    def __init__(
        self,
        leave: Callable[[str, int, int], None],
        *,
        max_runs: int | None,
        max_memory: int | None,
        memory: Callable[[], int] | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._leave = leave
        self._max_runs = None if max_runs is None else max(1, round(max_runs * _shrink(jitter())))
        self._max_memory = None if max_memory is None else max_memory * _shrink(jitter())
        self._memory = memory or resident_bytes
        self._runs = 0
        self._is_told = False

    def note_run(self) -> None:
        """Another run has ended here."""
        self._runs += 1
        if self._is_told or (reason := self._reason()) is None:
            return
        self._is_told = True
        self._leave(reason, self._runs, self._memory())

    def _reason(self) -> str | None:
        if self._max_runs is not None and self._runs >= self._max_runs:
            return "runs"
        if self._max_memory is not None and self._memory() > self._max_memory:
            return "memory"

        return None


def resident_bytes() -> int:
    """Return how much memory this process has (RSS)."""
    return int(_STATM.read_bytes().split()[1]) * resource.getpagesize()


def _shrink(random: float) -> float:
    return 1 - _JITTER * random
