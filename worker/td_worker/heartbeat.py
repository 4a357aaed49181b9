"""Watches the user loop from the runtime thread: does it turn, and do attempts end in time.

Code that blocks the user loop blocks everything there that could notice it. So the runtime thread
sends it a beat now and then, while there are runs, and reads the clock for those that are to end.
"""

import asyncio
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

__all__ = ["Deadlines", "Heartbeat", "Late"]

log = structlog.get_logger()

_TICK: Final = 1.0
"""Seconds between two looks while there are runs; none are taken without."""


@dataclass(frozen=True, slots=True)
class Late:
    """An attempt that was to end by now."""

    run_id: str
    attempt: int
    status: str
    """What becomes of the run: TIMED_OUT or CANCELED."""


class Deadlines:
    """When attempts must have ended that were told to. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_attempt: dict[tuple[str, int], tuple[float, str]] = {}

    def set(self, run_id: str, attempt: int, seconds: float, status: str) -> None:
        """Expect the end of that attempt in so many *seconds*; the sooner of two counts."""
        with self._lock:
            entry = (time.monotonic() + seconds, status)
            known = self._by_attempt.get((run_id, attempt), entry)
            self._by_attempt[run_id, attempt] = min(known, entry)

    def clear(self, run_id: str, attempt: int) -> None:
        """That attempt has ended, or waits."""
        if not self._by_attempt:
            return
        with self._lock:
            self._by_attempt.pop((run_id, attempt), None)

    def forget(self) -> None:
        """There are no runs: what was expected of runs that had ended before is void."""
        with self._lock:
            self._by_attempt.clear()

    def take_late(self) -> list[Late]:
        """Return the attempts that are over their time, each once."""
        now = time.monotonic()
        with self._lock:
            late = [key for key, (at, _) in self._by_attempt.items() if at <= now]

            return [Late(*key, self._by_attempt.pop(key)[1]) for key in late]


class Heartbeat:
    """The look at one user loop. Belongs to the runtime loop.

    Args:
        user_loop: Whose turns are watched; it runs in the main thread.
        is_busy: Whether there are runs; callable from any thread.
        deadlines: When attempts must have ended.
        on_late: Called with each attempt that has not.
        on_kill: Called with the seconds without a turn before the process ends itself.
        stalled_after: Seconds without a turn that are told.
        kill_after: Seconds without a turn after which the process ends itself; None: never.
    """

    def __init__(
        self,
        user_loop: asyncio.AbstractEventLoop,
        *,
        is_busy: Callable[[], bool],
        deadlines: Deadlines,
        on_late: Callable[[Late], None],
        on_kill: Callable[[float], None],
        stalled_after: float,
        kill_after: float | None,
    ) -> None:
        self._user_loop = user_loop
        self._is_busy = is_busy
        self._deadlines = deadlines
        self._on_late = on_late
        self._on_kill = on_kill
        self._stalled_after = stalled_after
        self._kill_after = kill_after
        self._timer: asyncio.TimerHandle | None = None
        self._beat_at = 0.0
        self._is_out = False
        self._is_told = False

    def wake(self) -> None:
        """There are runs: look at the loop from now on."""
        if self._timer is None:
            self._beat()
            self._later()

    def _later(self) -> None:
        bounds = (_TICK, self._stalled_after / 4, (self._kill_after or _TICK * 4) / 4)
        self._timer = asyncio.get_running_loop().call_later(min(bounds), self._look)

    def _look(self) -> None:
        self._timer = None
        for late in self._deadlines.take_late():
            self._on_late(late)
        if self._is_out:
            self._judge(time.monotonic() - self._beat_at)
        elif not self._is_busy():
            self._deadlines.forget()
            return
        else:
            self._beat()
        self._later()

    def _beat(self) -> None:
        self._is_out = True
        self._beat_at = time.monotonic()
        self._user_loop.call_soon_threadsafe(self._turned)

    def _turned(self) -> None:
        """On the user loop: it turns."""
        if self._is_told:
            log.info("worker.recovered", stalled_s=round(time.monotonic() - self._beat_at, 3))
        self._is_told = False
        self._is_out = False

    def _judge(self, silent: float) -> None:
        """Tell of a loop that has not turned for *silent* seconds, and end it in time."""
        if silent >= self._stalled_after and not self._is_told:
            self._is_told = True
            log.warning(
                "worker.stalled",
                stalled_s=round(silent, 3),
                current=self._current_run(),
                stack=main_thread_stack(),
            )
        if self._kill_after is not None and silent >= self._kill_after:
            log.error("worker.stall_killed", stalled_s=round(silent, 3))
            # The supervisor sees a worker that died, and blames the run if it was alone (R8).
            self._on_kill(silent)
            os.killpg(os.getpgrp(), signal.SIGKILL)

    def _current_run(self) -> str | None:
        """Return what the loop is stuck in, as far as its name says."""
        task = asyncio.current_task(self._user_loop)

        return None if task is None else task.get_name()


def main_thread_stack() -> str:
    """Return where the main thread is, the innermost call last."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)

    return "" if frame is None else "".join(traceback.format_stack(frame))
