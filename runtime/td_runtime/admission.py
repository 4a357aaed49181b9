"""Which requests for runs are accepted: rules over numbers and names, no I/O."""

import difflib
import math
from collections.abc import Collection, Mapping
from typing import Final

import msgspec

from td_runtime.config import LimitsConfig, TaskConfig
from td_runtime.queues import queue_limits
from td_worker.messages import TriggerItem

__all__ = ["TriggerError", "check_items", "check_metadata", "check_task"]


_LONGEST: Final = 10 * 365 * 86_400.0
"""Seconds: what is longer is a mistake in the unit."""

_DAYS_AHEAD: Final = 365
"""Days from now that a run may be delayed to: it is kept, and counted as queued, all that time."""


class TriggerError(Exception):
    """Runs that were asked for cannot be accepted; the message says why and what is valid.

    Attributes:
        code: Why, for programs: ``unknown_task``, ``unknown_run``, ``queue_full``, ``draining``,
            ``too_large`` or ``invalid``.
    """

    def __init__(self, message: str, *, code: str = "invalid") -> None:
        super().__init__(message)
        self.code = code


def check_items(
    items: list[TriggerItem],
    *,
    tasks: Mapping[str, TaskConfig],
    limits: LimitsConfig,
    backlog: int,
    now: float,
) -> None:
    """Check what one request asks for; all of it is accepted, or nothing.

    Args:
        items: The runs that are asked for.
        tasks: The registered tasks by id.
        limits: What is refused.
        backlog: How many runs wait to be handed out.
        now: Epoch seconds.

    Raises:
        TriggerError: An unknown task or queue, something too large or too long, a number that
            makes no sense, or no room in the queue.
    """
    if len(items) > limits.batch:
        raise TriggerError(
            f"a batch of {len(items)} runs; limits.batch = {limits.batch}", code="too_large"
        )
    if backlog + len(items) > limits.max_queued:
        raise TriggerError(
            f"the queue is full; limits.max_queued = {limits.max_queued}", code="queue_full"
        )
    for item in items:
        check_task(item, tasks)
        _check_payload(item, limits)
        if item.queue is not None:
            _check_queue(item.queue, tasks)
        if item.run_at is not None:
            check_moment(item.run_at, f"task {item.task!r}", now)
        _check_numbers(item)
        _check_keys(item, limits)
        check_tags(item.tags, f"task {item.task!r}", limits)
        if item.metadata is not None:
            check_metadata(item.metadata, f"task {item.task!r}", limits)


def check_task(item: TriggerItem, tasks: Mapping[str, TaskConfig]) -> None:
    """Check alone that there is such a task.

    Raises:
        TriggerError: There is not; names the nearest one.
    """
    if item.task in tasks:
        return
    close = difflib.get_close_matches(item.task, tasks, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    known = ", ".join(tasks) or "none"
    raise TriggerError(
        f"there is no task {item.task!r}{hint} (registered: {known})", code="unknown_task"
    )


def _check_payload(item: TriggerItem, limits: LimitsConfig) -> None:
    if len(item.payload) > limits.payload:
        raise TriggerError(
            f"the payload for task {item.task!r} is {len(item.payload)} bytes; "
            f"limits.payload = {limits.payload}",
            code="too_large",
        )


def _check_queue(queue: str, tasks: Mapping[str, TaskConfig]) -> None:
    queues = queue_limits(tasks.values())
    if queue in queues:
        return
    close = difflib.get_close_matches(queue, queues, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise TriggerError(f"there is no queue {queue!r}{hint} (known: {', '.join(sorted(queues))})")


def check_moment(run_at: float, what: str, now: float) -> None:
    """Check alone when a run may start; *what* it is for is said in the error.

    Raises:
        TriggerError: It is no moment, or too far off.
    """
    latest = now + _DAYS_AHEAD * 86_400.0
    # Not "greater": nothing compares with NaN.
    if not 0.0 <= run_at <= latest:
        raise TriggerError(
            f"the delay of {what} ends at {run_at:.15g}, in seconds since the epoch; it must end "
            f"within {_DAYS_AHEAD} days from now"
        )


def _check_numbers(item: TriggerItem) -> None:
    """Refuse what no clock and no counter can mean, before it is stored."""
    for name, value, low, high in (
        ("ttl", item.ttl, 0.0, _LONGEST),
        ("idempotency_ttl", item.idempotency_ttl, 0.0, _LONGEST),
        ("priority", item.priority, -_LONGEST, _LONGEST),
        ("max_duration", item.max_duration, 0.01, _LONGEST),
        ("max_attempts", item.max_attempts, 1, 1000),
    ):
        if value is not None and not (math.isfinite(value) and low <= value <= high):
            raise TriggerError(
                f"{name} = {value:g} for task {item.task!r}; it must be from {low:g} to {high:g}"
            )


def _check_keys(item: TriggerItem, limits: LimitsConfig) -> None:
    for name, key in (
        ("idempotency_key", item.idempotency_key),
        ("concurrency_key", item.concurrency_key),
        ("stream_run_id", item.stream_run_id),
    ):
        if key is not None and not 0 < len(key) <= limits.key_length:
            raise TriggerError(
                f"the {name} for task {item.task!r} has {len(key)} characters; it needs at least "
                f"one, limits.key_length = {limits.key_length}"
            )


def check_tags(tags: Collection[str], what: str, limits: LimitsConfig) -> None:
    """Check tags alone; *what* they are for is said in the error.

    Raises:
        TriggerError: There are too many, or one is too long or empty.
    """
    if len(tags) > limits.tags:
        raise TriggerError(f"{len(tags)} tags for {what}; limits.tags = {limits.tags}")
    for tag in tags:
        if not 0 < len(tag) <= limits.tag_length:
            raise TriggerError(
                f"a tag for {what} has {len(tag)} characters; it needs at least one, "
                f"limits.tag_length = {limits.tag_length}"
            )


def check_metadata(metadata: bytes, what: str, limits: LimitsConfig) -> None:
    """Check metadata alone; *what* it belongs to is said in the error.

    Raises:
        TriggerError: It is too large, or not JSON.
    """
    if len(metadata) > limits.metadata:
        raise TriggerError(
            f"the metadata for {what} is {len(metadata)} bytes; "
            f"limits.metadata = {limits.metadata}",
            code="too_large",
        )
    try:
        msgspec.json.decode(metadata)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise TriggerError(f"the metadata for {what} is not JSON: {error}") from error
