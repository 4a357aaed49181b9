"""What a worker was given and has not begun: between the runtime thread and the user loop."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from typing import Final

from td_worker.executor import Executor
from td_worker.heartbeat import Deadlines
from td_worker.messages import AssignedRun, RunOutcome

__all__ = ["Inbox"]

_PATIENCE: Final = 0.2
"""Seconds after which a run that was given ahead and has found no place is given back."""


class Inbox:
    """Starts runs in the executor: those it has places for at once, those given ahead later.

    The supervisor gives tiny runs ahead, so that the next one begins where the last one ended, and
    not a round trip and a commit later. What cannot begin soon goes back to the queue for other
    workers, however stuck the user loop may be.

    `fill` belongs to the user loop, everything else to the runtime loop.

    Args:
        executor: Who executes.
        loop: The user loop.
        drained: Gets the time-out of the drain.
        places: Runs that are executed at once.
        deadlines: Forget what is expected of a run that never began.
        report: Called with the outcomes of runs that never began; in any thread.
        log_together: Makes a block whose log lines are sent together.
    """

    def __init__(
        self,
        executor: Executor,
        loop: asyncio.AbstractEventLoop,
        drained: "Future[float]",
        *,
        places: int,
        deadlines: Deadlines,
        report: Callable[[RunOutcome], None],
        log_together: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._executor = executor
        self._loop = loop
        self._drained = drained
        self._places = places
        self._deadlines = deadlines
        self._report = report
        self._log_together = log_together
        self._is_filling = False
        # Taken from by both threads, one entry at a time, which a deque allows.
        self._ahead: deque[tuple[float, AssignedRun]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def is_busy(self) -> bool:
        """Whether there are runs; for any thread."""
        return self._executor.is_busy() or bool(self._ahead)

    def assign(self, runs: list[AssignedRun], ahead: list[AssignedRun]) -> None:
        """Begin *runs* now, and those *ahead* as soon as others have ended."""
        if ahead:
            now = time.monotonic()
            self._ahead.extend([(now, run) for run in ahead])
            if self._timer is None:
                self._look_later()
        self._loop.call_soon_threadsafe(self._start, runs)

    def cancel(self, run_id: str, attempt: int) -> None:
        """Cancel that attempt, whether it has begun or not."""
        self._loop.call_soon_threadsafe(self._stop, run_id, attempt, "CANCELED")

    def interrupt(self, run_id: str, attempt: int) -> None:
        """Have that run go back to the queue, whether it has begun or not."""
        self._loop.call_soon_threadsafe(self._stop, run_id, attempt, "INTERRUPTED")

    def drain(self, timeout: float) -> None:
        """Give back what has not begun, and end what has within *timeout* seconds."""
        self._give_back(float("inf"))
        if not self._drained.done():
            self._drained.set_result(timeout)
            return
        # Told to leave when it suits, now in haste: the runtime stops.
        self._loop.call_soon_threadsafe(self._loop.call_later, timeout, self._executor.hurry)

    def fill(self) -> None:
        """A run has ended: begin others in its place, once for all that end in this turn."""
        if self._ahead and not self._is_filling:
            self._is_filling = True
            self._loop.call_soon(self._start, ())

    def _start(self, runs: Sequence[AssignedRun]) -> None:
        self._is_filling = False
        with self._log_together():
            for run in runs:
                self._executor.start(run)
            while self._ahead and self._executor.running < self._places:
                try:
                    _, run = self._ahead.popleft()
                except IndexError:
                    return
                self._executor.start(run)

    def _stop(self, run_id: str, attempt: int, status: str) -> None:
        for entry in list(self._ahead):
            run = entry[1]
            if run.id == run_id and run.attempt == attempt:
                self._end_unbegun(entry, status)
                return
        if status == "CANCELED":
            self._executor.cancel(run_id, attempt)
        else:
            self._executor.interrupt(run_id, attempt)

    def _end_unbegun(self, entry: tuple[float, AssignedRun], status: str) -> None:
        try:
            self._ahead.remove(entry)
        except ValueError:
            # The other thread was faster: it has gone back.
            return
        self._tell(entry[1], status)

    def _look_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_PATIENCE, self._look)

    def _look(self) -> None:
        self._timer = None
        self._give_back(time.monotonic() - _PATIENCE)
        if self._ahead:
            self._look_later()

    def _give_back(self, until: float) -> None:
        """Give back the runs that have come until then."""
        while self._ahead:
            try:
                entry = self._ahead.popleft()
            except IndexError:
                return
            if entry[0] > until:
                self._ahead.appendleft(entry)
                return
            self._tell(entry[1], "INTERRUPTED")

    def _tell(self, run: AssignedRun, status: str) -> None:
        self._deadlines.clear(run.id, run.attempt)
        self._report(RunOutcome(run_id=run.id, attempt=run.attempt, status=status, took=None))
