"""One attempt of one run: its function, the hooks around it, and what its end means."""

import asyncio
import concurrent.futures
import contextvars
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec
import structlog

from td_worker import context
from td_worker.clock import AttemptClock
from td_worker.context import Execution, Waits
from td_worker.described import describe, text_of
from td_worker.encoding import encode_json
from td_worker.errors import (
    OutputTooLargeError,
    TaskMiddlewareError,
    TaskOutputError,
    TaskPayloadError,
)
from td_worker.heartbeat import Deadlines
from td_worker.hooks import Caught, Hook, Result, Wait
from td_worker.messages import AssignedRun, RunError
from td_worker.next_attempt import NextAttempt
from td_worker.retry import is_retryable
from td_worker.task import Task

__all__ = ["End", "Lifecycle", "Limits"]

log = structlog.get_logger()

_HOOKS_SHARE: Final = 0.9
"""Of the grace, what `on_cancel` hooks have: the rest is for them to end when they are cancelled,
before the worker is killed."""

_ENDED_EARLY: Final = frozenset({"CANCELED", "TIMED_OUT"})
"""Attempts that were told to end for good: what their function returns then is half a result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one attempt."""

    output_bytes: int = 10 * 1024 * 1024
    traceback_bytes: int = 64 * 1024
    stream_drain: float = 60.0
    """Seconds the streams of a run may take after its function has returned."""
    cancel_grace: float = 30.0
    """Seconds an attempt and its `on_cancel` hooks may take after it was canceled, or its time was
    over; then its worker is killed."""


class End(msgspec.Struct, frozen=True, kw_only=True):
    """How an attempt ended."""

    status: str
    output: bytes | None = None
    error: RunError | None = None
    retry_at: float | None = None
    """When the next attempt starts; None: none follows."""


class Lifecycle:
    """The attempt. All methods belong to the user loop's thread.

    Args:
        code: The task.
        run: What is executed.
        threads: Where plain `def` functions and hooks are called.
        deadlines: Told when the attempt must have ended.
        limits: Its bounds.
        settle: Has what the attempt streams settled; called before middleware goes on.

    Attributes:
        assigned: What is executed.
        loop: The user loop.
        task: Where it is executed; the loop itself holds tasks by weak references only.
        execution: What its code sees; to be set before anything is called, and the current one of
            the context that `run` is called in.
    """

    def __init__(
        self,
        code: Task,
        run: AssignedRun,
        *,
        threads: ThreadPoolExecutor,
        deadlines: Deadlines,
        limits: Limits,
        settle: "Callable[[Lifecycle], Awaitable[object]]",
    ) -> None:
        self._code = code
        self._has_hooks = bool(code.hooks)
        self._settle = settle
        self.assigned = run
        self._threads = threads
        self._deadlines = deadlines
        self._limits = limits
        self.loop = asyncio.get_running_loop()
        self._seconds = run.max_duration or code.spec.max_duration
        self._clock: AttemptClock | None = None
        """None while its time is not limited."""
        self._payload: Any = None
        self._stage: asyncio.Task[Any] | None = None
        """The task that is to be cancelled, unless the function has one of its own."""
        self._function: asyncio.Task[Any] | None = None
        self._in_threads = 0
        self._ended: asyncio.Future[None] | None = None
        """Done with the function; there once somebody wants to know."""
        self._raised: BaseException | None = None
        self._end: End | None = None
        self._canceling: asyncio.Task[None] | None = None
        self._stopped_at = 0.0
        self._is_over = False
        """Only its streams are still to be drained."""
        self.task: asyncio.Task[None]
        self.execution: Execution
        self.stop_status: str | None = None
        """Why it was told to end: CANCELED, INTERRUPTED or TIMED_OUT; None while nobody did."""

    @property
    def waits(self) -> Waits:
        """What a wait of this attempt means."""
        return _AttemptWaits(self)

    # ------------------------------------------------------------ from outside

    async def run(self) -> End:
        """Execute it from payload to cleanup. Raises nothing."""
        self._stage = asyncio.current_task()
        if self.stop_status is not None:
            return self._stopped(None)
        try:
            return await self._run()
        finally:
            self._is_over = True

    async def _run(self) -> End:
        try:
            self._payload = self._code.decode(self.assigned.payload)
        except TaskPayloadError as error:
            return self._failed(error, code="TASK_INPUT_ERROR")
        if self._seconds is not None:
            self._start_clock(self._seconds)
        end = await (self._within_middleware() if self._has_hooks else self._alone())
        self._stop_clock()
        if self._canceling is not None:
            await self._hear_canceling(self._canceling)
        self._deadlines.clear(self.assigned.id, self.assigned.attempt)
        # Its traceback holds this very object: only the garbage collector would free the two.
        self._raised = None

        return end

    def stop(self, status: str) -> None:
        """Tell it to end; the first reason counts.

        A thread cannot be interrupted: cancelling its future would report an end of code that
        goes on. Plain `def` tasks see the flag and end themselves, or die with the process.
        """
        if self.stop_status is not None:
            return
        self.stop_status = status
        self._stopped_at = time.monotonic()
        self.execution.cancelled.set()
        self._stop_clock()
        if self._stage is None:
            return
        if status in _ENDED_EARLY:
            self._expect_end(self._limits.cancel_grace, status)
            # Nobody would wait for hooks that begin beside the drain, nor is there anything left
            # of what they are told of: the outcome stands.
            if not self._is_over and self._code.hooks.named("on_cancel"):
                self._canceling = self.loop.create_task(self._tell_canceled())
        if self._in_threads:
            # Nobody can interrupt a thread; only one that waits for input is told.
            self.execution.tails.interrupt()
        else:
            self._cancel()

    def _cancel(self) -> None:
        if self._function is not None and not self._function.done():
            self._function.cancel()
        elif self._stage is not None:
            self._stage.cancel()

    def _expect_end(self, seconds: float, status: str) -> None:
        self._deadlines.set(self.assigned.id, self.assigned.attempt, seconds, status)

    # ------------------------------------------------------------ time

    def _start_clock(self, seconds: float) -> None:
        self._clock = AttemptClock(seconds, lambda: self.stop("TIMED_OUT"))
        self._clock.start()
        # Should the user loop be stuck when the time is over, the runtime thread knows it.
        self._expect_end(seconds + self._limits.cancel_grace, "TIMED_OUT")

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.stop()
            self._clock = None

    def pause(self) -> None:
        """Stop the clock: the run waits."""
        if self._clock is not None:
            self._clock.pause()
            self._deadlines.clear(self.assigned.id, self.assigned.attempt)

    def resume(self) -> None:
        """Let the clock go on."""
        if self._clock is not None:
            self._clock.resume()
            if (left := self._clock.left) is not None:
                self._expect_end(left + self._limits.cancel_grace, "TIMED_OUT")

    # ------------------------------------------------------------ from the outside in

    async def _alone(self) -> End:
        """Execute a task that has no hooks."""
        await self._execute()

        return self._require_end()

    async def _within_middleware(self) -> End:
        try:
            await self._enter(self._code.hooks.named("middleware"))
        # Task code may raise whatever it likes, SystemExit and CancelledError included; if one of
        # them got out, it would end the loop and with it every neighbour.
        except BaseException as error:  # noqa: BLE001
            if not self._is_known(error):
                if self.stop_status is not None:
                    return self._stopped(error)
                retry_at = self._next().at_after(error)
                return self._failed(error, code="TASK_MIDDLEWARE_ERROR", retry_at=retry_at)

        return self._require_end()

    def _require_end(self) -> End:
        if self._end is None:
            raise AssertionError("an attempt without an end")

        return self._end

    def _is_known(self, error: BaseException) -> bool:
        """Whether *error* is the attempt's own, which its end tells of already."""
        if self._end is None:
            return False
        canceled = (asyncio.CancelledError, concurrent.futures.CancelledError)

        return error is self._raised or (
            self.stop_status is not None and isinstance(error, canceled)
        )

    async def _enter(self, middleware: tuple[Hook, ...]) -> None:
        if not middleware:
            await self._execute()
            if self._code.hooks.named("middleware"):
                await self._settle(self)
            return
        hook, *inner = middleware
        following = _Following(self, tuple(inner))
        if hook.is_async:
            await self._call_hook(hook, call_next=following.call)
        else:
            await self._call_hook(hook, call_next=following.call_blocked)
        if not following.was_called:
            raise TaskMiddlewareError(hook.where)

    async def follow(self, inner: tuple[Hook, ...]) -> None:
        """Execute what is inside a middleware; raises what the attempt has raised."""
        await self._enter(inner)
        if self._raised is not None:
            raise self._raised

    async def follow_staged(self, inner: tuple[Hook, ...]) -> None:
        """As `follow`, in an asyncio task of its own, which is the one to cancel meanwhile."""
        outer = self._stage, self._in_threads
        self._stage, self._in_threads = asyncio.current_task(), 0
        try:
            await self.follow(inner)
        finally:
            self._stage, self._in_threads = outer

    async def _execute(self) -> None:
        """Hooks, function, hooks; sets the end, raises nothing."""
        try:
            result = await self._call_prepared()
            output = self._encode_output(result)
        except BaseException as error:  # noqa: BLE001  see above
            self._settle_ended()
            self._raised = error
            self._end = await self._end_of_failure(error)
        else:
            self._end = End(status="COMPLETED", output=output)
            if not self._has_hooks:
                return
            self._settle_ended()
            await self._tell("on_success", output=result)
            await self._tell("on_complete", result=Result(ok=True, output=result))
        await self._tell("cleanup")

    def _settle_ended(self) -> None:
        if self._ended is None:
            self._ended = self.loop.create_future()
        self._ended.set_result(None)

    async def _call_prepared(self) -> Any:
        if self._has_hooks:
            await self._prepare()
        if not self._code.is_async:
            result = await self._in_thread(self._code.function, self._payload)
        elif self._has_hooks:
            self._function = self.loop.create_task(self._code.function(self._payload))
            result = await _result(self._function)
        else:
            result = await self._code.function(self._payload)
        if self.stop_status in _ENDED_EARLY:
            raise asyncio.CancelledError

        return result

    async def _prepare(self) -> None:
        for hook in self._code.hooks.named("init"):
            self.execution.init.update(await self._call_hook(hook) or {})
            self._check_stopped()
        names = (
            ("on_start", "on_start_attempt")
            if self.assigned.attempt == 1
            else ("on_start_attempt",)
        )
        for name in names:
            for hook in self._code.hooks.named(name):
                await self._call_hook(hook)
                self._check_stopped()

    def _check_stopped(self) -> None:
        """A plain hook was not interrupted: what comes after it must not begin."""
        if self.stop_status is not None:
            raise asyncio.CancelledError

    # ------------------------------------------------------------ failures

    async def _end_of_failure(self, error: BaseException) -> End:
        if self.stop_status is not None:
            return self._stopped(error)
        try:
            answer = await self._decide(error)
        except BaseException as broken:  # noqa: BLE001  a hook is task code
            if self.stop_status is not None:
                return self._stopped(error)
            return await self._end_for_good(broken, code="HANDLE_ERROR_ERROR")
        shown = answer.error or error
        if isinstance(answer.retry_at, float):
            return self._failed(shown, retry_at=answer.retry_at)

        return await self._end_for_good(shown, is_skipped=answer.skip_retrying)

    async def _end_for_good(
        self, error: BaseException, *, code: str | None = None, is_skipped: bool = False
    ) -> End:
        self._raised = self._raised or error
        await self._tell("on_failure", error=error)
        await self._tell("on_complete", result=Result(ok=False, error=error))

        return self._failed(error, code=code or _code_of(error), is_skipped=is_skipped)

    async def _decide(self, error: BaseException) -> Caught:
        """Return what follows: `retry_at` as seconds since the epoch, or None for nothing."""
        if not is_retryable(error):
            return Caught(skip_retrying=True)
        following = self._next()
        delay = following.delay_after(error)
        at = None if delay is None else time.time() + delay
        for hook in self._code.hooks.named("catch_error"):
            answer = await self._call_hook(hook, error=error, retry_at=at, retry_delay=delay)
            if answer is None:
                continue
            if not isinstance(answer, Caught):
                raise TypeError(f"{hook.where} returned {answer!r:.100}, and not Caught(…) or None")
            return replace(answer, retry_at=following.answered_at(answer))

        return Caught(retry_at=at)

    def _next(self) -> NextAttempt:
        run = self.assigned

        return NextAttempt(
            policy=self._code.spec.retry.limited(run.max_attempts),
            used=run.attempts_used or run.attempt,
        )

    def fail(self, error: BaseException) -> End:
        """Return the end of an attempt that *error* turned into a failure afterwards."""
        return self._failed(error, retry_at=self._next().at_after(error))

    def _failed(
        self,
        error: BaseException,
        *,
        code: str | None = None,
        retry_at: float | None = None,
        is_skipped: bool = False,
    ) -> End:
        described = describe(error, self._limits.traceback_bytes, code=code)
        if is_skipped or code == "HANDLE_ERROR_ERROR":
            described = RunError(
                type=described.type,
                message=described.message,
                traceback=described.traceback,
                retryable=False,
                code=described.code,
            )

        return End(status="FAILED", error=described, retry_at=retry_at)

    def _stopped(self, error: BaseException | None) -> End:
        """Return the end of an attempt that was told to end."""
        status = self.stop_status or "CANCELED"
        if status == "TIMED_OUT":
            message = f"the attempt took longer than max_duration ({self._seconds:g} s)"
            late = RunError(
                type="TimeoutError", message=message, retryable=False, code="MAX_DURATION_EXCEEDED"
            )
            return End(status=status, error=late)
        if error is None or isinstance(error, asyncio.CancelledError):
            return End(status=status)

        return End(status=status, error=describe(error, self._limits.traceback_bytes))

    # ------------------------------------------------------------ calling task code

    async def _tell(self, name: str, **facts: Any) -> None:
        """Call hooks whose failure changes nothing."""
        for hook in self._code.hooks.named(name):
            try:
                await self._call_hook(hook, **facts)
            except BaseException as error:  # noqa: BLE001  the outcome stands, whatever they do
                _log_failed_hook(hook, error)

    async def _tell_canceled(self) -> None:
        with context.executing(self.execution):
            if self._ended is None:
                self._ended = self.loop.create_future()
            await self._tell("on_cancel", ended=asyncio.shield(self._ended))

    async def _hear_canceling(self, canceling: "asyncio.Task[None]") -> None:
        """Wait for the `on_cancel` hooks; those that take nearly all of the grace are cancelled.

        A plain one cannot be, and would keep its thread for ever: the worker goes with it.
        """
        last = self._stopped_at + _HOOKS_SHARE * self._limits.cancel_grace
        await asyncio.wait({canceling}, timeout=max(0.0, last - time.monotonic()))
        if not canceling.done() and not self._in_threads:
            canceling.cancel()
        await asyncio.wait({canceling})

    async def call_wait_hooks(self, name: str, wait: Wait) -> None:
        """Call `on_wait` or `on_resume`; what they raise is raised in the waiting code."""
        for hook in self._code.hooks.named(name):
            await self._call_hook(hook, wait=wait)
            self._check_stopped()

    def has_wait_hooks(self) -> bool:
        """Whether there is anything to call at a wait."""
        hooks = self._code.hooks

        return bool(hooks.named("on_wait") or hooks.named("on_resume"))

    async def _call_hook(self, hook: Hook, **facts: Any) -> Any:
        facts = {"payload": self._payload, "init": self.execution.init, **facts}
        arguments = hook.arguments(facts)
        if hook.is_async:
            return await hook.function(**arguments)

        return await self._in_thread(hook.function, **arguments)

    async def _in_thread(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call plain code in a thread, with this execution's context."""
        here = contextvars.copy_context()

        def call() -> Any:
            try:
                return here.run(function, *args, **kwargs)
            except StopIteration as error:
                # A future refuses this one, and whoever awaits it would wait for ever.
                raise RuntimeError("the task's function raised StopIteration") from error

        self._in_threads += 1
        try:
            return await _result(self.loop.run_in_executor(self._threads, call))
        finally:
            self._in_threads -= 1

    def _encode_output(self, result: Any) -> bytes:
        spec = self._code.spec
        try:
            output = encode_json(result)
        except (TypeError, ValueError) as error:
            raise TaskOutputError(spec.id, str(error)) from error
        if len(output) > self._limits.output_bytes:
            raise OutputTooLargeError(spec.id, len(output), self._limits.output_bytes)

        return output


class _Following:
    """What one middleware calls for what is inside it."""

    def __init__(self, lifecycle: Lifecycle, inner: tuple[Hook, ...]) -> None:
        self._lifecycle = lifecycle
        self._inner = inner
        self._loop = asyncio.get_running_loop()
        self.was_called = False

    async def call(self) -> None:
        """For `async def` middleware."""
        self._note_call()
        await self._lifecycle.follow(self._inner)

    def call_blocked(self) -> None:
        """For plain `def` middleware, in its thread."""
        self._note_call()
        work: Coroutine[Any, Any, None] = self._lifecycle.follow_staged(self._inner)
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _note_call(self) -> None:
        if self.was_called:
            raise RuntimeError("call_next() was called twice")
        self.was_called = True


class _AttemptWaits(Waits):
    """What a wait of an attempt means: its clock stands still, and its hooks are called."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle

    async def begin(self, wait: Wait) -> None:
        await self._lifecycle.call_wait_hooks("on_wait", wait)
        self._lifecycle.pause()

    async def end(self, wait: Wait) -> None:
        self._lifecycle.resume()
        await self._lifecycle.call_wait_hooks("on_resume", wait)

    def begin_blocked(self, wait: Wait) -> None:
        if self._lifecycle.has_wait_hooks():
            asyncio.run_coroutine_threadsafe(self.begin(wait), self._lifecycle.loop).result()
        else:
            self._lifecycle.loop.call_soon_threadsafe(self._lifecycle.pause)

    def end_blocked(self, wait: Wait) -> None:
        if self._lifecycle.has_wait_hooks():
            asyncio.run_coroutine_threadsafe(self.end(wait), self._lifecycle.loop).result()
        else:
            self._lifecycle.loop.call_soon_threadsafe(self._lifecycle.resume)

    def abandon(self) -> None:
        self._lifecycle.loop.call_soon_threadsafe(self._lifecycle.resume)


def _log_failed_hook(hook: Hook, error: BaseException) -> None:
    log.warning(
        "hook.failed",
        hook=hook.where,
        error_type=type(error).__name__,
        error_message=text_of(lambda: str(error)),
        exc_info=error,
    )


async def _result(future: "asyncio.Future[Any]") -> Any:
    """Return the result of code that runs apart.

    Awaited while pending, a future that gets a GeneratorExit of task code would close the awaiting
    coroutines one by one, and the run would have no outcome; from a done one it is just raised.
    """
    await asyncio.wait({future})

    return await future


def _code_of(error: BaseException) -> str | None:
    is_output = isinstance(error, TaskOutputError | OutputTooLargeError)

    return "TASK_OUTPUT_ERROR" if is_output else None
