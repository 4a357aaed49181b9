"""Which requests for runs are accepted: rules over numbers and names, no I/O."""

import difflib
from collections.abc import Mapping

from td_runtime.config import LimitsConfig, TaskConfig
from td_worker.messages import TriggerItem

__all__ = ["TriggerError", "check_items"]


class TriggerError(Exception):
    """Runs that were asked for cannot be accepted; the message says why and what is valid."""


def check_items(
    items: list[TriggerItem], *, tasks: Mapping[str, TaskConfig], limits: LimitsConfig, backlog: int
) -> None:
    """Check what one request asks for; all of it is accepted, or nothing.

    Args:
        items: The runs that are asked for.
        tasks: The registered tasks by id.
        limits: What is refused.
        backlog: How many runs wait to be handed out.

    Raises:
        TriggerError: An unknown task, a payload or a batch too large, or no room in the queue.
    """
    if len(items) > limits.batch:
        raise TriggerError(f"a batch of {len(items)} runs; limits.batch = {limits.batch}")
    if backlog + len(items) > limits.max_queued:
        raise TriggerError(f"the queue is full; limits.max_queued = {limits.max_queued}")
    for item in items:
        _check_task(item, tasks)
        _check_payload(item, limits)


def _check_task(item: TriggerItem, tasks: Mapping[str, TaskConfig]) -> None:
    if item.task in tasks:
        return
    close = difflib.get_close_matches(item.task, tasks, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    known = ", ".join(tasks) or "none"
    raise TriggerError(f"there is no task {item.task!r}{hint} (registered: {known})")


def _check_payload(item: TriggerItem, limits: LimitsConfig) -> None:
    if len(item.payload) > limits.payload:
        raise TriggerError(
            f"the payload for task {item.task!r} is {len(item.payload)} bytes; "
            f"limits.payload = {limits.payload}"
        )
