"""Records how attempts end: completed, failed, tried again, crashed. Told once it is committed."""

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import structlog

from td_runtime import logs
from td_runtime.config import TaskConfig
from td_runtime.retries import retry_policy
from td_runtime.store import (
    Canceled,
    Completed,
    Crashed,
    Failed,
    Finish,
    Run,
    RunStore,
    Status,
    TimedOut,
)
from td_runtime.suspects import Suspects
from td_worker.messages import RunError, RunOutcome
from td_worker.retry import RetryPolicy

__all__ = ["WORKER_STALLED", "Outcomes", "log_late"]

log = structlog.get_logger()

_UNKNOWN_ERROR: Final = RunError(type="Unknown", message="no error was reported")
_IGNORED: Final = RunError(
    type="CancelledError", message="the attempt did not stop when it was canceled", retryable=False
)
WORKER_STALLED: Final = "WorkerStalled"
"""The type of the error when a worker was killed since it was stuck, and did not die by itself."""

_ENDS: Final = frozenset(
    {"run.completed", "run.failed", "run.crashed", "run.timed_out", "run.canceled"}
)


class Outcomes:
    """What becomes of a run when an attempt of it has ended. Belongs to the supervisor's loop.

    Args:
        store: The run store.
        tasks: The registered tasks by id: their retry policies and crash limits.
        suspects: Told who was caught and who is cleared (R8).
        on_recorded: Called with a run once its change is committed, and whether it is the end.
        on_failed: Called with the error when the store cannot record it.
    """

    def __init__(
        self,
        store: RunStore,
        tasks: Mapping[str, TaskConfig],
        *,
        suspects: Suspects,
        on_recorded: Callable[[Run, bool], None],
        on_failed: Callable[[BaseException], None],
    ) -> None:
        self._store = store
        self._tasks: dict[str, TaskConfig] = {}
        self._retries: dict[str, RetryPolicy] = {}
        self.reload(tasks)
        self._suspects = suspects
        self._on_recorded = on_recorded
        self._on_failed = on_failed
        self._completed: list[tuple[Run, RunOutcome]] = []
        """What the store was not told of yet."""

    def reload(self, tasks: Mapping[str, TaskConfig]) -> None:
        """Go by these tasks; one that is left out may still execute, and keeps what was known."""
        self._tasks |= tasks
        self._retries |= {task.id: retry_policy(task) for task in tasks.values()}

    def record(self, run: Run, outcome: RunOutcome) -> None:
        """Record what a worker said of its attempt of *run*."""
        self._suspects.cleared(run.id)
        lost = outcome.records_lost
        error = outcome.error or _UNKNOWN_ERROR
        match outcome.status:
            case "COMPLETED":
                self._complete(run, outcome)
            case "INTERRUPTED":
                self.requeue(run)
            case "TIMED_OUT":
                self._time_out(run, error, lost)
            case "CANCELED":
                changed = self._store.finish(*_attempt(run), Canceled(None))
                self._then(changed, run, "run.canceled")
            case _:
                self._fail(run, error, lost, outcome.retry_at)

    def _complete(self, run: Run, outcome: RunOutcome) -> None:
        """Record it with all others of this turn of the loop: together they cost half as much."""
        if not self._completed:
            asyncio.get_running_loop().call_soon(self.flush)
        self._completed.append((run, outcome))

    def flush(self) -> None:
        """Have the store record what completed; before anybody is given what dead workers had."""
        ends, self._completed = self._completed, []
        if not ends:
            return
        changed = self._store.finish_all(
            [
                Finish(
                    *_attempt(run),
                    Completed(outcome.output or b"null"),
                    outcome.records_lost,
                    run.task,
                )
                for run, outcome in ends
            ]
        )
        changed.add_done_callback(partial(self._told, ends=ends))

    def _told(
        self, changed: "asyncio.Future[list[bool]]", *, ends: Sequence[tuple[Run, RunOutcome]]
    ) -> None:
        if changed.cancelled():
            return
        if (error := changed.exception()) is not None:
            self._on_failed(error)
            return
        info = log.bind().info
        with logs.together():
            for (run, outcome), is_in_time in zip(ends, changed.result(), strict=True):
                if not is_in_time:
                    log_late(run.id, run.attempt)
                    continue
                info("run.completed", **run.log_context(), records_lost=outcome.records_lost)
                self._on_recorded(run, True)

    def requeue(self, run: Run) -> None:
        """Put *run* back into the queue; nobody is to blame for it."""
        self._then(self._store.requeue(*_attempt(run), excused=True), run, "run.requeued")

    def overdue(self, run: Run, status: str) -> None:
        """Record that *run* was canceled, or took too long, and ended with its worker only."""
        self._suspects.cleared(run.id)
        if status == "CANCELED":
            changed = self._store.finish(*_attempt(run), Canceled(_IGNORED))
            self._then(changed, run, "run.canceled", error_message=_IGNORED.message)
            return
        seconds = run.max_duration or self._tasks[run.task].max_duration
        # A reload may have taken the limit away since the attempt began.
        limit = "" if seconds is None else f" ({seconds:g} s)"
        error = RunError(
            type="TimeoutError",
            message=f"the attempt took longer than max_duration{limit} and did not stop",
            retryable=False,
            code="MAX_DURATION_EXCEEDED",
        )
        self._time_out(run, error, 0)

    def blame(
        self,
        run: Run,
        exit_status: int,
        *,
        stuck: str | None = None,
        log_tail: str | None = None,
    ) -> None:
        """Retry a run whose worker died under it, at once the first time, or call it crashed.

        Args:
            run: It was alone in its worker.
            exit_status: How the worker ended; negative for a signal.
            stuck: What kept the worker from working, if it was killed for that.
            log_tail: The last lines it logged.
        """
        changed: asyncio.Future[Any]
        error = _death(exit_status, stuck)
        delay = self._delay(run)
        if run.crashes + 1 >= self._tasks[run.task].max_crashes or delay is None:
            self._suspects.caught(run.id)
            self._suspects.cleared(run.id)
            changed = self._store.finish(*_attempt(run), Crashed(error, log_tail))
            event = "run.crashed"
        elif run.crashes == 0:
            self._suspects.caught(run.id)
            changed = self._store.requeue(*_attempt(run), excused=False, crashed=True)
            event = "run.requeued"
        else:
            run_at = time.time() + delay
            self._suspects.caught(run.id, not_before=run_at)
            changed = self._store.retry(*_attempt(run), run_at=run_at, error=error, crashed=True)
            event = "run.retried"
        self._then(changed, run, event, error_message=error.message)

    def _fail(self, run: Run, error: RunError, lost: int, retry_at: float | None) -> None:
        """Record a failure; whether another attempt follows was decided where it failed."""
        changed: asyncio.Future[Any]
        facts = {"error_type": error.type, "error_message": error.message}
        if retry_at is not None:
            delay = max(0.0, retry_at - time.time())
            changed = self._store.retry(*_attempt(run), run_at=retry_at, error=error)
            self._then(changed, run, "run.retried", delay_s=round(delay, 3), **facts)
            return
        changed = self._store.finish(*_attempt(run), Failed(error), records_lost=lost)
        self._then(changed, run, "run.failed", **facts)

    def _time_out(self, run: Run, error: RunError, lost: int) -> None:
        changed = self._store.finish(*_attempt(run), TimedOut(error), records_lost=lost)
        self._then(changed, run, "run.timed_out", error_message=error.message)

    def _delay(self, run: Run) -> float | None:
        policy = self._retries[run.task].limited(run.max_attempts)

        return policy.delay(run.attempts_used, random.random)

    def _then(self, changed: "asyncio.Future[Any]", run: Run, event: str, **facts: Any) -> None:
        """Tell *event* once the change is committed."""
        changed.add_done_callback(partial(self._committed, run=run, event=event, facts=facts))

    def _committed(
        self, changed: "asyncio.Future[Any]", *, run: Run, event: str, facts: dict[str, Any]
    ) -> None:
        if changed.cancelled():
            return
        error = changed.exception()
        if error is not None:
            self._on_failed(error)
            return
        if not changed.result():
            log_late(run.id, run.attempt)
            return
        if changed.result() is Status.CANCELED:
            # It was to be canceled when it failed or lost its worker: there is no next attempt.
            self._suspects.cleared(run.id)
            event, facts = "run.canceled", {}
        level = log.info if event in {"run.completed", "run.requeued"} else log.warning
        level(event, **run.log_context(), **facts)
        self._on_recorded(run, event in _ENDS)


def _death(exit_status: int, stuck: str | None) -> RunError:
    if stuck is not None:
        return RunError(type=WORKER_STALLED, message=stuck)
    how = f"signal {-exit_status}" if exit_status < 0 else f"status {exit_status}"

    return RunError(type="WorkerDied", message=f"the worker died under this run ({how})")


def log_late(run_id: str, attempt: int) -> None:
    """Log that the end of an attempt was told that nobody waits for any more (R5)."""
    log.warning("run.result_dropped", run_id=run_id, attempt=attempt)


def _attempt(run: Run) -> tuple[str, int, str]:
    """What fences every change: this attempt of this run by this owner."""
    return run.id, run.attempt, run.owner or ""
