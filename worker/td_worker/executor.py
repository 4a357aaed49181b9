"""Executes runs: one attempt each, from payload to outcome.

Lives on the user loop. Async tasks run there; plain ``def`` tasks run in threads, with the same
context variables. Nothing that task code raises leaves this module: it becomes an outcome.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import msgspec
import structlog

from td_worker import context
from td_worker.context import AttemptInfo, Execution, Messenger, RunInfo, TaskInfo
from td_worker.errors import StreamLossError
from td_worker.heartbeat import Deadlines
from td_worker.lifecycle import End, Lifecycle, Limits
from td_worker.messages import AssignedRun, RunOutcome
from td_worker.streams.client import StreamClient
from td_worker.task import Task

__all__ = ["Executor", "Limits"]

log = structlog.get_logger()

_DRAIN_GRACE: Final = 5.0
"""Seconds an attempt may go on after a drain has interrupted it."""

_STREAM_GRACE: Final = 2.0
"""Seconds of it that the streams of an interrupted attempt may take."""

_MAX_THREADS: Final = 1024
"""Plain ``def`` runs at once in one worker; parents that wait keep their thread."""


def _ignore_end() -> None:
    """Nobody counts the runs of this executor."""


class Executor:
    """The attempts of one worker.

    All methods but `is_busy` belong to the user loop's thread.

    Args:
        tasks: Registered code by task id.
        streams: The streams of the process.
        messenger: How runs ask for other runs.
        report: Called with each outcome.
        deadlines: Told when attempts must have ended; only a kill ends those that have not.
        limits: Bounds of each attempt.
        on_end: Called after each outcome.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        *,
        streams: StreamClient,
        messenger: Messenger,
        report: Callable[[RunOutcome], None],
        deadlines: Deadlines,
        limits: Limits,
        on_end: Callable[[], None] = _ignore_end,
    ) -> None:
        self._tasks = tasks
        self._task_infos = {name: TaskInfo(id=name) for name in tasks}
        self._streams = streams
        self._messenger = messenger
        self._report = report
        self._deadlines = deadlines
        self._limits = limits
        self._on_end = on_end
        self.on_place: Callable[[], None] = _ignore_end
        """Called when an attempt has ended, after its outcome is told."""
        self._attempts: dict[str, Lifecycle] = {}
        # Looking the logger up costs as much as a line that is not written.
        self._log = log.bind()
        self._threads = ThreadPoolExecutor(_MAX_THREADS, thread_name_prefix="td-task")
        self._idle: asyncio.Event = asyncio.Event()
        self._idle.set()

    def is_busy(self) -> bool:
        """Whether there are runs; for any thread."""
        return bool(self._attempts)

    @property
    def running(self) -> int:
        """How many attempts are under way."""
        return len(self._attempts)

    def start(self, run: AssignedRun) -> None:
        """Begin an attempt of *run*."""
        self._idle.clear()
        attempt = self._attempts[run.id] = self._attempt_of(run)
        # Here and not in its task, so that the lines of runs that begin together travel together.
        self._log.info("run.started", run_id=run.id, task=run.task, attempt=run.attempt)
        attempt.task = attempt.loop.create_task(self._execute(attempt), name=f"run {run.id}")

    def cancel(self, run_id: str, attempt: int) -> None:
        """Cancel that attempt, if it is under way."""
        self._stop_attempt(run_id, attempt, "CANCELED")

    def interrupt(self, run_id: str, attempt: int) -> None:
        """End that attempt, if it is under way, so that the run goes back to the queue."""
        self._stop_attempt(run_id, attempt, "INTERRUPTED")

    def _stop_attempt(self, run_id: str, attempt: int, status: str) -> None:
        found = self._attempts.get(run_id)
        if found is not None and found.assigned.attempt == attempt:
            found.stop(status)

    async def drain(self, timeout: float) -> None:
        """Wait for what is under way; after *timeout* seconds interrupt it, then give it its grace.

        Loops, which never end by themselves, are interrupted at once.

        Returns when all attempts have an outcome, or the grace is over; what is left then is
        plain ``def`` code that nobody can interrupt, and dies with the process.
        """
        for attempt in list(self._attempts.values()):
            if self._tasks[attempt.assigned.task].spec.is_loop:
                attempt.stop("INTERRUPTED")
        if await self._became_idle(timeout):
            return
        self.hurry()
        await self._became_idle(_DRAIN_GRACE)

    def hurry(self) -> None:
        """Interrupt what is under way."""
        for attempt in list(self._attempts.values()):
            attempt.stop("INTERRUPTED")

    async def _became_idle(self, timeout: float) -> bool:
        try:
            await asyncio.wait_for(self._idle.wait(), timeout)
        except TimeoutError:
            return False

        return True

    def _attempt_of(self, run: AssignedRun) -> Lifecycle:
        attempt = Lifecycle(
            self._tasks[run.task],
            run,
            threads=self._threads,
            deadlines=self._deadlines,
            limits=self._limits,
            settle=self._drain_streams,
        )
        attempt.execution = Execution(
            run=_run_info(run),
            attempt=AttemptInfo(number=run.attempt),
            task=self._task_infos[run.task],
            streams=self._streams,
            messenger=self._messenger,
            waits=attempt.waits,
        )

        return attempt

    async def _execute(self, attempt: Lifecycle) -> None:
        run = attempt.assigned
        structlog.contextvars.bind_contextvars(run_id=run.id, task=run.task, attempt=run.attempt)
        began = time.monotonic()
        # Not for a block only: this context ends with this attempt.
        context.enter(attempt.execution)
        outcome = await self._outcome(attempt, began)
        attempt.execution.end()
        del self._attempts[run.id]
        if not self._attempts:
            self._idle.set()
        self._log.debug("attempt.ended", status=outcome.status, records_lost=outcome.records_lost)
        self._report(outcome)
        self._on_end()
        self.on_place()

    async def _outcome(self, attempt: Lifecycle, began: float) -> RunOutcome:
        run = attempt.assigned
        end = await attempt.run()
        lost = await self._drain_streams(attempt)
        if lost and end.status == "COMPLETED" and self._tasks[run.task].spec.fail_on_stream_loss:
            end = attempt.fail(StreamLossError(lost))
        self._deadlines.clear(run.id, run.attempt)

        return _outcome_of(run, end, lost, time.monotonic() - began)

    async def _drain_streams(self, attempt: Lifecycle) -> int:
        interrupted = attempt.stop_status == "INTERRUPTED"
        timeout = _STREAM_GRACE if interrupted else self._limits.stream_drain
        try:
            return await self._streams.drain(attempt.execution, timeout)
        except asyncio.CancelledError:
            # The function has returned and its outcome stands; what its streams cannot send in
            # the grace is lost, and must be counted.
            return await self._streams.drain(attempt.execution, _STREAM_GRACE)


def _outcome_of(run: AssignedRun, end: End, lost: int, took: float) -> RunOutcome:
    return RunOutcome(
        run_id=run.id,
        attempt=run.attempt,
        status=end.status,
        output=end.output,
        error=end.error,
        records_lost=lost,
        retry_at=end.retry_at,
        took=took,
    )


def _run_info(run: AssignedRun) -> RunInfo:
    """A root run has neither parent nor root, as upstream."""
    return RunInfo(
        id=run.id,
        parent_id=run.parent_id,
        root_id=None if run.root_id == run.id else run.root_id,
        tags=run.tags,
        metadata=None if run.metadata is None else msgspec.json.decode(run.metadata),
        stream_run_id=run.stream_run_id,
    )
