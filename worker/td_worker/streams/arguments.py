"""What the async and the plain `def` halves of `streams` agree on: arguments and their meaning."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from td_worker.context import Execution, refuse_on_event_loop, try_current
from td_worker.errors import NotInTaskError
from td_worker.streams.guardrail import Method, warn_in_chat_agent
from td_worker.streams.lane import Lane
from td_worker.streams.naming import DEFAULT_KEY, check_key, check_run_id, run_slot

if TYPE_CHECKING:
    from td_worker.streams.reader import Feed

TURN: Final = 256
"""Writes in a row after which a hot loop lets others have their turn."""


class Missing:
    """The type of `MISSING`, which stands for an argument that was not given."""

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = Missing()


class ReadFrom(NamedTuple):
    """What `streams.read` was asked for, checked."""

    run_id: str
    key: str
    last_event_id: str | None
    timeout_s: int


class SourceCheck(Protocol):
    """Refuses what cannot be a source."""

    def __call__(self, source: object, *, what: str) -> None:
        """Raise TypeError for a source that is none."""
        ...


def open_pipe(
    first: object, second: object, target: str | None, *, check: SourceCheck
) -> tuple[Lane, Any]:
    """Return the lane and the source that `streams.pipe` was asked for."""
    warn_in_chat_agent("pipe")
    key, source = split_key(first, second, what="streams.pipe")
    check(source, what="streams.pipe")

    return open_lane(key, target), source


def open_to_write(key: str, target: str | None, *, blocks: bool = False) -> Lane:
    """Return the lane that `streams.writer` was asked for."""
    warn_in_chat_agent("writer")
    if blocks:
        refuse_on_event_loop("streams.writer")

    return open_lane(key, target)


def open_to_append(
    first: object,
    second: object,
    target: str | None,
    *,
    method: Method = "append",
    blocks: bool = False,
) -> tuple[Lane, object]:
    """Return the lane and the chunk that `streams.append` was asked for."""
    warn_in_chat_agent(method)
    if blocks:
        refuse_on_event_loop("streams.append")
    key, value = split_key(first, second, what="streams.append")

    return open_lane(key, target), value


def open_feed(
    run_id: str,
    key: str,
    *,
    start_index: int | None,
    timeout: float | timedelta,
    blocks: bool = False,
) -> Feed:
    """Return the parts that `streams.read` was asked for."""
    warn_in_chat_agent("read")
    if blocks:
        refuse_on_event_loop("streams.read")
    asked = check_read(run_id, key, start_index=start_index, timeout=timeout)

    return current_execution().streams.read(
        asked.run_id, asked.key, last_event_id=asked.last_event_id, timeout_s=asked.timeout_s
    )


def open_lane(key: str, target: str | None) -> Lane:
    """
    Return a new lane into stream `key` of the run that `target` means, for the calling task.

    Raises:
        NotInTaskError: No task is running: the streams of a process are reached through its tasks.
        StreamKeyError: The key or the run id cannot name a stream.
    """
    execution = current_execution()

    return execution.streams.open(run_slot(target, key, execution), execution.opened)


def current_execution() -> Execution:
    """
    Return the calling task's execution.

    Raises:
        NotInTaskError: No task is running.
    """
    execution = try_current()
    if execution is None:
        raise NotInTaskError("`streams`")

    return execution


def split_key(first: object, second: object, *, what: str) -> tuple[str, object]:
    """
    Return `(key, value)` of a call whose key is optional and comes first.

    Raises:
        TypeError: Only one argument was given where that is ambiguous.
    """
    if isinstance(second, Missing):
        return DEFAULT_KEY, first
    if not isinstance(first, str):
        raise TypeError(f"{what}: the first of two arguments is the stream's key, a string")

    return first, second


def check_source(source: object, *, what: str) -> None:
    """Refuse text as a source: it would be streamed letter by letter, and is often a lone key."""
    if isinstance(source, str | bytes):
        raise TypeError(
            f"{what}: the source is an iterable of chunks, got {type(source).__name__}; "
            "wrap a single chunk into a list, or use streams.append"
        )


def check_plain_source(source: object, *, what: str) -> None:
    """Refuse text and async sources, which a plain `def` task cannot read."""
    check_source(source, what=what)
    if not isinstance(source, Iterable):
        raise TypeError(
            f"{what}: a plain `def` task pipes plain iterables, got {type(source).__name__}; "
            "for an async source write an `async def` task"
        )


def check_read(
    run_id: str, key: str, *, start_index: int | None, timeout: float | timedelta
) -> ReadFrom:
    """
    Return what a read is to ask the control plane for.

    Raises:
        StreamKeyError: The key or the run id cannot name a stream.
        ValueError: A number is out of its bounds.
    """
    if start_index is not None and start_index < 0:
        raise ValueError(f"start_index counts from 0, got {start_index}")
    seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else float(timeout)
    if not 1 <= seconds <= 600:
        raise ValueError(f"timeout must be from 1 to 600 seconds, got {seconds:g}")
    last_event_id = str(start_index - 1) if start_index else None

    return ReadFrom(check_run_id(run_id), check_key(key), last_event_id, round(seconds))
