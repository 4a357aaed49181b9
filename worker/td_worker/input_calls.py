"""What the async and the plain `def` halves of reading input agree on."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol

from td_worker.context import Execution
from td_worker.control_plane import segment
from td_worker.encoding import encode_json
from td_worker.errors import InputTimeoutError, WaitpointTimeoutError
from td_worker.streams.arguments import current_execution
from td_worker.streams.naming import check_key, check_run_id
from td_worker.tail import READ_TIMEOUT, Handler, Record, Tail, Waiter

GRACE: Final = 0.1
"""Seconds that a wait keeps its place: what is there already needs no coming and going."""

_HOP: Final = 10.0
"""Seconds that the runtime loop may need for handing out what is buffered; it needs none."""

Callback = Callable[[], Awaitable[object] | object]


@dataclass(frozen=True, slots=True, kw_only=True)
class InputResult:
    """
    What `once` and `wait` return: a record, or why there is none.

    ```python
    result = await sessions.open("order-17").in_.once(timeout=30)
    text = result.output["text"] if result.ok else "nothing came"
    ```
    """

    record: Record | None = None
    error: InputTimeoutError | WaitpointTimeoutError | None = None

    @property
    def ok(self) -> bool:
        """Whether something came in time."""
        return self.record is not None

    @property
    def output(self) -> Any:
        """What came; None when nothing did."""
        return None if self.record is None else self.record.data

    @property
    def seq_num(self) -> int | None:
        """The record's number; None when nothing came."""
        return None if self.record is None else self.record.seq_num

    def unwrap(self) -> Any:
        """
        Return what came.

        Raises:
            InputTimeoutError, WaitpointTimeoutError: Nothing came in time.
        """
        if self.error is not None:
            raise self.error

        return self.output


class Subscription:
    """
    A handler that is called with what comes in; made by `on`.

    ```python
    in_ = sessions.open("order-17").in_
    subscription = in_.on(print)
    first = (await in_.once()).unwrap()
    subscription.off()
    ```
    """

    def __init__(self, tail: Tail, handler: Handler) -> None:
        self._tail = tail
        self._handler = handler

    def off(self) -> None:
        """Call it no more; what it has not taken goes to others."""
        self._tail.remove(self._handler)


class InputSource(Protocol):
    """Where input comes from, for whichever task asks."""

    def execution(self) -> Execution:
        """Return the execution that reads."""
        ...

    def tail(self) -> Tail:
        """Return its tail; the same for every call of one execution."""
        ...


class RunInputs:
    """An input stream of the current run."""

    def __init__(self, stream_id: str) -> None:
        self._stream_id = check_key(stream_id)

    def execution(self) -> Execution:
        """Return the execution that reads: the caller's."""
        return current_execution()

    def tail(self) -> Tail:
        """Return the caller's tail of this stream."""
        execution = current_execution()
        name = f"input/{execution.run.id}/{self._stream_id}"

        return execution.tails.get(name, lambda: self._open(name, execution))

    def _open(self, name: str, execution: Execution) -> Tail:
        client = execution.streams

        return Tail(
            name,
            lambda cursor: client.control_plane.open_input_stream(
                execution.run.id, self._stream_id, last_event_id=cursor, timeout_s=READ_TIMEOUT
            ),
            client,
            takes_on_sight=True,
        )


def send_input(run_id: str, stream_id: str, data: Any) -> Future[bytes]:
    """Start sending `data` to an input stream of any run."""
    client = current_execution().streams
    path = f"/realtime/v1/streams/{segment(check_run_id(run_id))}/input/{segment(stream_id)}"

    return client.submit(client.control_plane.call("POST", path, body=encode_json({"data": data})))


# --- waiting -------------------------------------------------------------------------------------


@contextmanager
def taking(tail: Tail, waiter: Waiter) -> Iterator[None]:
    """Give back what nobody has looked at, when the block fails or is cancelled."""
    try:
        yield
    except BaseException:
        tail.give_back(waiter)
        raise


@contextmanager
def suspended(execution: Execution) -> Iterator[None]:
    """Let the run need no place inside the block."""
    execution.messenger.suspended(execution.run.id, execution.attempt.number)
    try:
        yield
    finally:
        execution.messenger.resumed(execution.run.id, execution.attempt.number)


def withdraw(waiter: Waiter) -> Record | None:
    """Wait no more; return the record that came in the last moment, if one did."""
    return None if waiter.future.cancel() else waiter.future.result()


def grace(tail: Tail, timeout: float | None) -> float:
    """Return how long a wait keeps its place."""
    if tail.peek() is not None:
        return _HOP
    return GRACE if timeout is None else min(GRACE, timeout)


def patience(tail: Tail, timeout: float | None) -> float | None:
    """Return how long to wait: what is there already is taken, however short the time-out."""
    return max(timeout, _HOP) if timeout is not None and tail.peek() is not None else timeout


def received(tail: Tail, record: Record | None, timeout: float | None) -> InputResult:
    """Return what `once` does."""
    error = InputTimeoutError(tail.name, timeout or 0) if record is None else None

    return InputResult(record=record, error=error)


def waited(tail: Tail, record: Record | None, timeout: float | None) -> InputResult:
    """Return what `wait` does."""
    text = f"no input came from {tail.name} within {timeout or 0:g} s"
    error = WaitpointTimeoutError(text) if record is None else None

    return InputResult(record=record, error=error)


def skipped(record: Record | None) -> InputResult:
    """Return what a wait does that must not free its place."""
    text = "Idle timeout elapsed and skip_suspend is set"
    error = WaitpointTimeoutError(text) if record is None else None

    return InputResult(record=record, error=error)


def is_coroutine_function(function: object) -> bool:
    """Say whether calling `function` makes a coroutine."""
    call = getattr(type(function), "__call__", None)  # noqa: B004  not whether, but which one

    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)
