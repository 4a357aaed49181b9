"""What a run receives, for plain `def` tasks; `td_worker.inputs` says what each call means."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

import structlog

from td_worker.context import refuse_on_event_loop
from td_worker.hooks import Wait, waiting_blocked
from td_worker.http import say
from td_worker.input_calls import (
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
    What comes in, for plain `def` tasks; see `td_worker.inputs.Input`.

    ```python
    in_ = sessions.open("order-17").in_
    subscription = in_.on(lambda message: message.get("type") == "stop")
    subscription.off()
    ```
    """

    def __init__(self, source: InputSource) -> None:
        self._source = source

    @property
    def last_dispatched_seq_num(self) -> int | None:
        """The highest number of a record that was taken; None before any."""
        return self._source.tail().last_taken

    def on(self, handler: Callable[[Any], object]) -> Subscription:
        """
        Have `handler` called with every record, in a thread of its own; see the async twin.

        It takes a record by returning exactly `True`, and must not wait for records itself: the
        next one comes when it has returned.
        """
        return self._subscribe(handler, whole=False)

    def on_record(self, handler: Callable[[Record], object]) -> Subscription:
        """As `on`, for a function that wants the whole record, with its number and time."""
        return self._subscribe(handler, whole=True)

    def once(self, *, timeout: float | None = None) -> InputResult:
        """See the async twin."""
        refuse_on_event_loop("once")
        tail = self._source.tail()
        waiter = tail.take()
        with taking(tail, waiter):
            record = _arrival(waiter, patience(tail, timeout)) or withdraw(waiter)

        return received(tail, record, timeout)

    def peek(self) -> Any:
        """Return the first record that nobody has taken yet, and leave it; None without one."""
        record = self._source.tail().peek()

        return None if record is None else record.data

    def wait(self, *, timeout: float | None = None) -> InputResult:
        """See the async twin."""
        refuse_on_event_loop("wait")
        tail = self._source.tail()
        waiter = tail.take()
        with taking(tail, waiter):
            record = _arrival(waiter, grace(tail, timeout))
            if record is None:
                record = self._wait_aside(tail, waiter, timeout)

        return waited(tail, record, timeout)

    def wait_with_idle_timeout(
        self,
        idle_timeout: float,
        *,
        timeout: float | None = None,
        on_suspend: Callable[[], object] | None = None,
        on_resume: Callable[[], object] | None = None,
        skip_suspend: bool = False,
    ) -> InputResult:
        """See the async twin."""
        refuse_on_event_loop("wait_with_idle_timeout")
        tail = self._source.tail()
        waiter = tail.take()
        with taking(tail, waiter):
            record = _arrival(waiter, max(idle_timeout, grace(tail, None)))
            if record is None and skip_suspend:
                return skipped(withdraw(waiter))
            if record is None:
                _tell(on_suspend)
                record = self._wait_aside(tail, waiter, timeout)
                _tell(on_resume)

        return waited(tail, record, timeout)

    def resume_after(self, seq_num: int) -> None:
        """Read only what comes behind this number; before anything else is called."""
        self._source.tail().resume_after(seq_num)

    def ignore_until(self, timestamp: int | None) -> None:
        """Drop what comes with this time (milliseconds) or an earlier one; None drops nothing."""
        self._source.tail().ignore_until(timestamp)

    def _subscribe(self, handler: Callable[[Any], object], *, whole: bool) -> Subscription:
        if is_coroutine_function(handler):
            raise TypeError("a plain `def` task's handler is a plain function; got a coroutine's")
        tail = self._source.tail()
        threaded = _Thread(handler, tail.name, whole=whole)
        tail.add(threaded)

        return Subscription(tail, threaded)

    def _wait_aside(self, tail: Tail, waiter: Waiter, timeout: float | None) -> Record | None:
        execution = self._source.execution()
        with waiting_blocked(Wait(type="input", ids=(tail.name,))), suspended(execution):
            return _arrival(waiter, timeout) or withdraw(waiter)


class InputStream(Input):
    """
    What clients send to a run; made by `streams.input`.

    ```python
    approvals = streams.input("approvals")
    decision = approvals.once(timeout=30).unwrap()
    approvals.send(run_id, decision)
    ```
    """

    def __init__(self, stream_id: str) -> None:
        super().__init__(RunInputs(stream_id))
        self.id = stream_id

    def send(self, run_id: str, data: Any) -> None:
        """See the async twin."""
        refuse_on_event_loop("send")
        send_input(run_id, self.id, data).result()


class _Thread:
    """A plain function that is called in a thread of its own, with the caller's context."""

    def __init__(self, function: Callable[[Any], object], source: str, *, whole: bool) -> None:
        self._function = function
        self._source = source
        self._whole = whole
        self._context = contextvars.copy_context()
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="td-input")

    def offer(self, record: Record) -> Future[bool]:
        """Have it called; done with what it says."""
        try:
            return self._threads.submit(self._context.run, self._call, record)
        except RuntimeError:  # closed meanwhile
            refused: Future[bool] = Future()
            refused.set_result(False)
            return refused

    def release(self) -> None:
        """Let the thread end."""
        self._threads.shutdown(wait=False)

    def close(self) -> None:
        """Call it no more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _call(self, record: Record) -> bool:
        try:
            return self._function(record if self._whole else record.data) is True
        except Exception as error:
            log.error(
                "input.handler_failed", source=self._source, reason=say(error), exc_info=error
            )
            return False


def _arrival(waiter: Waiter, timeout: float | None) -> Record | None:
    """Return the record as soon as there is one; None after `timeout` seconds."""
    try:
        return waiter.future.result(timeout)
    except FutureTimeoutError:
        if not waiter.future.done():
            return None
        return waiter.future.result()


def _tell(callback: Callable[[], object] | None) -> None:
    if callback is not None:
        callback()
