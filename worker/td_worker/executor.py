"""Executes runs: one attempt from payload to outcome.

Lives on the user loop. Async tasks run there; plain ``def`` tasks run in threads, with the same
context variables. Nothing that task code raises leaves this module: it becomes an outcome.
"""

import asyncio
import contextvars
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from td_worker import context
from td_worker.context import AttemptInfo, Execution, Messenger, RunInfo, TaskInfo
from td_worker.encoding import encode_json
from td_worker.errors import (
    AbortTaskRunError,
    OutputTooLargeError,
    StreamLossError,
    TaskOutputError,
    TaskPayloadError,
)
from td_worker.messages import AssignedRun, RunError, RunOutcome
from td_worker.streams.client import StreamClient
from td_worker.task import Task

__all__ = ["Executor", "Limits"]

log = structlog.get_logger()

_CANCEL_GRACE: Final = 5.0
"""Seconds an attempt may go on after it was told that its time is over."""

_STREAM_GRACE: Final = 2.0
"""Seconds of it that the streams of an interrupted attempt may take."""

_MAX_THREADS: Final = 1024
"""Plain ``def`` runs at once in one worker; parents that wait keep their thread."""

_NEVER_RETRIED: Final = (AbortTaskRunError, TaskPayloadError, TaskOutputError, OutputTooLargeError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one attempt."""

    output_bytes: int = 10 * 1024 * 1024
    traceback_bytes: int = 64 * 1024
    stream_drain: float = 60.0
    """Seconds the streams of a run may take after its function has returned."""


@dataclass(slots=True)
class _Attempt:
    run: AssignedRun
    task: "asyncio.Task[None]"
    execution: Execution
    begun: bool = False
    """Its first line was executed; a cancellation before would take it away without an outcome."""
    stop_status: str | None = None
    """Why it was cancelled: CANCELED, INTERRUPTED or TIMED_OUT; None while nobody asked."""
    function: "asyncio.Future[Any] | None" = field(default=None)


class Executor:
    """The attempts of one worker.

    All methods belong to the user loop's thread.

    Args:
        tasks: Registered code by task id.
        streams: The streams of the process.
        messenger: How runs ask for other runs.
        report: Called with each outcome.
        overdue: Called when an attempt ignores the end of its time; only a kill ends it.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        *,
        streams: StreamClient,
        messenger: Messenger,
        report: Callable[[RunOutcome], None],
        overdue: Callable[[AssignedRun], None],
        limits: Limits,
    ) -> None:
        self._tasks = tasks
        self._streams = streams
        self._messenger = messenger
        self._report = report
        self._overdue = overdue
        self._limits = limits
        self._attempts: dict[str, _Attempt] = {}
        self._threads = ThreadPoolExecutor(_MAX_THREADS, thread_name_prefix="td-task")
        self._idle: asyncio.Event = asyncio.Event()
        self._idle.set()

    def start(self, run: AssignedRun) -> None:
        """Begin an attempt of *run*."""
        self._idle.clear()
        execution = Execution(
            run=_run_info(run),
            attempt=AttemptInfo(number=run.attempt),
            task=TaskInfo(id=run.task),
            streams=self._streams,
            messenger=self._messenger,
        )
        task = asyncio.get_running_loop().create_task(self._attempt(run.id), name=f"run {run.id}")
        self._attempts[run.id] = _Attempt(run, task, execution)

    def cancel(self, run_id: str, attempt: int) -> None:
        """Cancel that attempt, if it is under way."""
        self._stop_attempt(run_id, attempt, "CANCELED")

    def interrupt(self, run_id: str, attempt: int) -> None:
        """End that attempt, if it is under way, so that the run goes back to the queue."""
        self._stop_attempt(run_id, attempt, "INTERRUPTED")

    def _stop_attempt(self, run_id: str, attempt: int, status: str) -> None:
        found = self._attempts.get(run_id)
        if found is not None and found.run.attempt == attempt:
            self._stop(found, status)

    async def drain(self, timeout: float) -> None:
        """Wait for what is under way; after *timeout* seconds cancel it, then give it its grace.

        Returns when all attempts have an outcome, or the grace is over; what is left then is
        plain ``def`` code that nobody can interrupt, and dies with the process.
        """
        if await self._became_idle(timeout):
            return
        for attempt in list(self._attempts.values()):
            self._stop(attempt, "INTERRUPTED")
        await self._became_idle(_CANCEL_GRACE)

    async def _became_idle(self, timeout: float) -> bool:
        try:
            await asyncio.wait_for(self._idle.wait(), timeout)
        except TimeoutError:
            return False

        return True

    def _stop(self, attempt: _Attempt, status: str) -> None:
        if attempt.stop_status is not None:
            return
        attempt.stop_status = status
        attempt.execution.cancelled.set()
        # A thread cannot be interrupted: cancelling its future would report an end of code that
        # goes on. Plain `def` tasks see the flag and end themselves, or die with the process; only
        # one that waits for input is told.
        if not self._tasks[attempt.run.task].is_async:
            attempt.execution.tails.interrupt()
        elif attempt.begun:
            (attempt.function or attempt.task).cancel()

    async def _attempt(self, run_id: str) -> None:
        attempt = self._attempts[run_id]
        attempt.begun = True
        run = attempt.run
        structlog.contextvars.bind_contextvars(run_id=run.id, task=run.task, attempt=run.attempt)
        log.info("run.started")
        with context.executing(attempt.execution):
            outcome = await self._outcome(attempt)
        attempt.execution.tails.close()
        del self._attempts[run_id]
        if not self._attempts:
            self._idle.set()
        log.debug("attempt.ended", status=outcome.status, records_lost=outcome.records_lost)
        self._report(outcome)

    async def _outcome(self, attempt: _Attempt) -> RunOutcome:
        status, output, error = await self._call_guarded(attempt)
        lost = await self._drain_streams(attempt)
        task = self._tasks[attempt.run.task]
        if lost and status == "COMPLETED" and task.spec.fail_on_stream_loss:
            status, output = "FAILED", None
            error = self._describe(StreamLossError(lost))

        return RunOutcome(
            run_id=attempt.run.id,
            attempt=attempt.run.attempt,
            status=status,
            output=output,
            error=error,
            records_lost=lost,
        )

    async def _call_guarded(self, attempt: _Attempt) -> tuple[str, bytes | None, RunError | None]:
        """Call the task's function; return status, output and error. Raises nothing."""
        try:
            output = await self._call(attempt)
        # A task may raise whatever it likes, SystemExit and CancelledError included; if one of
        # them got out, it would end the loop and with it every neighbour.
        except BaseException as error:  # noqa: BLE001
            if attempt.stop_status is not None:
                return attempt.stop_status, None, self._describe_stop(attempt, error)
            return "FAILED", None, self._describe(error)

        return "COMPLETED", output, None

    async def _call(self, attempt: _Attempt) -> bytes:
        if attempt.stop_status is not None:
            raise asyncio.CancelledError
        task = self._tasks[attempt.run.task]
        payload = task.decode(attempt.run.payload)
        if task.is_async and task.spec.max_duration is None:
            result = await task.function(payload)
        else:
            result = await self._call_within(attempt, task, payload)

        return self._encode_output(task, result)

    async def _call_within(self, attempt: _Attempt, task: Task, payload: Any) -> Any:
        """Call the function as a future of its own, so that its time can be cut."""
        loop = asyncio.get_running_loop()
        if task.is_async:
            function: asyncio.Future[Any] = loop.create_task(task.function(payload))
        else:
            function = loop.run_in_executor(self._threads, _in_context(task.function, payload))
        attempt.function = function
        done, _ = await asyncio.wait({function}, timeout=task.spec.max_duration)
        if not done:
            await self._cut(attempt, function)

        return await function

    async def _cut(self, attempt: _Attempt, function: "asyncio.Future[Any]") -> None:
        """End an attempt whose time is over, or report that it ignores its end."""
        task = self._tasks[attempt.run.task]
        attempt.execution.cancelled.set()
        attempt.stop_status = "TIMED_OUT"
        if task.is_async:
            function.cancel()
        else:
            attempt.execution.tails.interrupt()
        done, _ = await asyncio.wait({function}, timeout=_CANCEL_GRACE)
        if not done:
            self._overdue(attempt.run)
            await asyncio.wait({function})

    async def _drain_streams(self, attempt: _Attempt) -> int:
        interrupted = attempt.stop_status == "INTERRUPTED"
        timeout = _STREAM_GRACE if interrupted else self._limits.stream_drain
        try:
            return await self._streams.drain(attempt.execution, timeout)
        except asyncio.CancelledError:
            # The function has returned and its outcome stands; what its streams cannot send in
            # the grace is lost, and must be counted.
            return await self._streams.drain(attempt.execution, _STREAM_GRACE)

    def _encode_output(self, task: Task, result: Any) -> bytes:
        try:
            output = encode_json(result)
        except (TypeError, ValueError) as error:
            raise TaskOutputError(task.spec.id, str(error)) from error
        if len(output) > self._limits.output_bytes:
            raise OutputTooLargeError(task.spec.id, len(output), self._limits.output_bytes)

        return output

    def _describe_stop(self, attempt: _Attempt, error: BaseException) -> RunError | None:
        if attempt.stop_status == "TIMED_OUT":
            seconds = self._tasks[attempt.run.task].spec.max_duration
            message = f"the attempt took longer than max_duration ({seconds:g} s)"
            return RunError(type="TimeoutError", message=message, retryable=False)
        if isinstance(error, asyncio.CancelledError):
            return None

        return self._describe(error)

    def _describe(self, error: BaseException) -> RunError:
        limit = self._limits.traceback_bytes

        return RunError(
            type=_printable(type(error).__name__),
            message=_head(_text_of(lambda: str(error)), limit),
            traceback=_tail(_text_of(lambda: "".join(traceback.format_exception(error))), limit),
            retryable=not isinstance(error, _NEVER_RETRIED),
        )


def _in_context(function: Callable[[Any], Any], payload: Any) -> Callable[[], Any]:
    """Return the call of a plain `def` task, with this execution's context, for a thread."""
    here = contextvars.copy_context()

    def call() -> Any:
        try:
            return here.run(function, payload)
        except StopIteration as error:
            # A future refuses this one, and whoever awaits it would wait for ever.
            raise RuntimeError("the task's function raised StopIteration") from error

    return call


def _run_info(run: AssignedRun) -> RunInfo:
    """A root run has neither parent nor root, as upstream."""
    return RunInfo(
        id=run.id,
        parent_id=run.parent_id,
        root_id=None if run.root_id == run.id else run.root_id,
    )


def _text_of(render: Callable[[], str]) -> str:
    """Return what *render* says of an exception of task code, whose ``__str__`` may fail, too."""
    try:
        return _printable(render())
    except BaseException as error:  # noqa: BLE001  the run must have its outcome
        return f"<it cannot be shown: {type(error).__name__}>"


def _printable(text: str) -> str:
    """Return *text* as UTF-8 can say it; a file name may hold lone surrogates."""
    return text.encode(errors="backslashreplace").decode()


def _head(text: str, limit: int) -> str:
    """Return the beginning of *text* in *limit* bytes."""
    raw = text.encode()
    if len(raw) <= limit:
        return text

    return raw[:limit].decode(errors="ignore") + " [cut]"


def _tail(text: str, limit: int) -> str:
    """Return the end of *text*, where a traceback says what happened, in *limit* bytes."""
    raw = text.encode()
    if len(raw) <= limit:
        return text

    return "[cut] " + raw[-limit:].decode(errors="ignore")
