"""
What a run receives, for async tasks: the half that input streams and sessions' `in` share.

A record goes to the first that waits for one (`once`, `wait`), and to every handler (`on`); what
nobody takes stays until somebody does. Plain `def` tasks: `td_worker.blocking_inputs`.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import structlog

from td_worker.hooks import Wait, waiting
from td_worker.http import say
from td_worker.input_calls import (
    Callback,
    InputResult,
    InputSource,
    RunInputs,
    Subscription,
    grace,
    is_coroutine_function,
    patience,
    received,
    send_input,
    skipped,
    suspended,
    taking,
    waited,
    withdraw,
)
from td_worker.tail import Record, Tail, Waiter

__all__ = ["Input", "InputResult", "InputStream", "Record", "Subscription"]

log = structlog.get_logger()


class Input:
    """
    What comes in, for async tasks; see `streams.input` and `sessions.open(...).in_`.

    Every execution reads for itself, from the beginning unless it says otherwise.
    """

    def __init__(self, source: InputSource) -> None:
        self._source = source

    @property
    def last_dispatched_seq_num(self) -> int | None:
        """The highest number of a record that was taken; None before any."""
        return self._source.tail().last_taken

    def on(self, handler: Callable[[Any], object]) -> Subscription:
        """
        Have `handler` called with every record, those that wait already included.

        A plain function is called on the caller's loop. What it takes by returning exactly `True`
        is nobody else's; anything else is kept for others until somebody takes it. A coroutine
        function takes every record, and works on one after the other. Errors are logged.

        Must not block, nor be the only one to take what it does not want: after 10,000 records that
        nobody takes, nothing more is read.

        ```python
        in_ = sessions.open("order-17").in_
        subscription = in_.on(lambda message: message.get("type") == "stop")
        subscription.off()
        ```
        """
        tail = self._source.tail()

        return subscribe(tail, handler, is_async=is_coroutine_function(handler))

    def on_record(self, handler: Callable[[Record], object]) -> Subscription:
        """As `on`, for a plain function that wants the whole record, with its number and time."""
        return subscribe(self._source.tail(), handler, is_async=False, whole=True)

    async def once(self, *, timeout: float | None = None) -> InputResult:
        """
        Take the next record.

        Args:
            timeout: Seconds to wait for it; None for as long as it takes.

        Raises:
            SessionReadError: It cannot be read.
        """
        tail = self._source.tail()
        waiter = tail.take()
        with taking(tail, waiter):
            record = await _arrival(waiter, patience(tail, timeout)) or withdraw(waiter)

        return received(tail, record, timeout)

    def peek(self) -> Any:
        """
        Return the first record that was read and nobody has taken, and leave it; None without one.

        Reads nothing by itself: the first `on`, `once` or `wait` does.
        """
        record = self._source.tail().peek()

        return None if record is None else record.data

    async def wait(self, *, timeout: float | None = None) -> InputResult:
        """
        Take the next record; while there is none, the run frees its place in the worker.

        Args:
            timeout: Seconds to wait for it; None for as long as it takes.

        Raises:
            SessionReadError: It cannot be read.
        """
        tail = self._source.tail()
        waiter = tail.take()
        with taking(tail, waiter):
            record = await _arrival(waiter, grace(tail, timeout))
            if record is None:
                record = await self._wait_aside(tail, waiter, timeout)

        return waited(tail, record, timeout)

    async def wait_with_idle_timeout(
        self,
        idle_timeout: float,
        *,
        timeout: float | None = None,
        on_suspend: Callback | None = None,
        on_resume: Callback | None = None,
        skip_suspend: bool = False,
    ) -> InputResult:
        """
        Take the next record: stay warm for a while, and only then free the run's place.

        Args:
            idle_timeout: Seconds to stay in place.
            timeout: Seconds to wait after that; None for as long as it takes.
            on_suspend: Called before the place is freed.
            on_resume: Called when the wait in which it was freed is over, whatever came.
            skip_suspend: Give up after the idle time instead.

        Raises:
            SessionReadError: It cannot be read.
        """
        tail = self._source.tail()
        waiter = tail.take()
        with taking(tail, waiter):
            record = await _arrival(waiter, max(idle_timeout, grace(tail, None)))
            if record is None and skip_suspend:
                record = withdraw(waiter)
                return skipped(record)
            if record is None:
                await _tell(on_suspend)
                record = await self._wait_aside(tail, waiter, timeout)
                await _tell(on_resume)

        return waited(tail, record, timeout)

    def resume_after(self, seq_num: int) -> None:
        """Read only what comes behind this number; before anything else is called."""
        self._source.tail().resume_after(seq_num)

    def ignore_until(self, timestamp: int | None) -> None:
        """Drop what comes with this time (milliseconds) or an earlier one; None drops nothing."""
        self._source.tail().ignore_until(timestamp)

    async def _wait_aside(self, tail: Tail, waiter: Waiter, timeout: float | None) -> Record | None:
        execution = self._source.execution()
        async with waiting(Wait(type="input", ids=(tail.name,))):
            with suspended(execution):
                return await _arrival(waiter, timeout) or withdraw(waiter)


class InputStream(Input):
    """
    What clients send to a run; made by `streams.input`.

    ```python
    approvals = streams.input("approvals")
    decision = (await approvals.once(timeout=30)).unwrap()
    await approvals.send(run_id, decision)
    ```
    """

    def __init__(self, stream_id: str) -> None:
        super().__init__(RunInputs(stream_id))
        self.id = stream_id

    async def send(self, run_id: str, data: Any) -> None:
        """
        Send to the input stream of this id of any run.

        Raises:
            ControlPlaneError: It was not taken, for example since the run is over.
        """
        await asyncio.wrap_future(send_input(run_id, self.id, data))


# --- handlers ------------------------------------------------------------------------------------


def subscribe(
    tail: Tail, function: Callable[[Any], object], *, is_async: bool, whole: bool = False
) -> Subscription:
    """Have `function` called on the running loop."""
    kind = _Worker if is_async else _Caller
    handler = kind(function, tail.name, whole=whole)
    tail.add(handler)

    return Subscription(tail, handler)


class _OnLoop:
    """A handler that is called on the loop, and in the context, it was made in."""

    def __init__(self, function: Callable[[Any], Any], source: str, *, whole: bool) -> None:
        self._function = function
        self._source = source
        self._whole = whole
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()

    def _argument(self, record: Record) -> Any:
        return record if self._whole else record.data

    def _complain(self, error: Exception) -> None:
        log.error("input.handler_failed", source=self._source, reason=say(error), exc_info=error)


class _Caller(_OnLoop):
    """A plain function, which says at once whether it takes a record."""

    def offer(self, record: Record) -> Future[bool]:
        """Have it called; done with what it says."""
        answer: Future[bool] = Future()
        try:
            self._loop.call_soon_threadsafe(self._call, record, answer, context=self._context)
        except RuntimeError:  # its loop is closed
            answer.set_result(False)

        return answer

    def close(self) -> None:
        """There is nothing under way."""

    release = close

    def _call(self, record: Record, answer: Future[bool]) -> None:
        taken = False
        try:
            taken = self._function(self._argument(record)) is True
        except Exception as error:  # noqa: BLE001  whatever it raises, the next record must come
            self._complain(error)
        finally:
            answer.set_result(taken)


class _Worker(_OnLoop):
    """A coroutine function, which works on one record after the other."""

    def __init__(self, function: Callable[[Any], Any], source: str, *, whole: bool) -> None:
        super().__init__(function, source, whole=whole)
        self._queue: deque[Record] = deque()
        self._task: asyncio.Task[None] | None = None

    def offer(self, record: Record) -> Future[bool]:
        """Take the record, to be worked on soon."""
        answer: Future[bool] = Future()
        try:
            self._loop.call_soon_threadsafe(self._queue_up, record, context=self._context)
        except RuntimeError:
            answer.set_result(False)
        else:
            answer.set_result(True)

        return answer

    def release(self) -> None:
        """Work on with what is queued."""

    def close(self) -> None:
        """Stop working: the run has ended."""
        if self._task is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._task.cancel)

    def _queue_up(self, record: Record) -> None:
        self._queue.append(record)
        if self._task is None or self._task.done():
            self._task = self._loop.create_task(self._work(), context=self._context)

    async def _work(self) -> None:
        while self._queue:
            record = self._queue.popleft()
            try:
                await self._function(self._argument(record))
            except Exception as error:  # noqa: BLE001  as above
                self._complain(error)


# --- waiting -------------------------------------------------------------------------------------


async def _arrival(waiter: Waiter, timeout: float | None) -> Record | None:
    """Return the record as soon as there is one; None after `timeout` seconds."""
    arrival = asyncio.wrap_future(waiter.future)
    arrival.add_done_callback(_look_at)
    await asyncio.wait({arrival}, timeout=timeout)

    return waiter.future.result() if waiter.future.done() else None


def _look_at(arrival: asyncio.Future[Record]) -> None:
    # The waiter's own future is what raises; asyncio would complain of this one's error.
    if not arrival.cancelled():
        arrival.exception()


async def _tell(callback: Callback | None) -> None:
    if callback is not None and inspect.isawaitable(answer := callback()):
        await answer
