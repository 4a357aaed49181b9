"""The queues that a configuration makes: names and limits, no I/O."""

from collections.abc import Iterable

from td_runtime.config import TaskConfig
from td_runtime.store.records import QueueLimits, default_queue

__all__ = ["queue_limits", "queue_of"]


def queue_of(task: TaskConfig) -> str:
    """Return the queue that a task's runs wait in unless their trigger names another."""
    return default_queue(task.id) if task.queue is None else task.queue


def queue_limits(tasks: Iterable[TaskConfig]) -> dict[str, QueueLimits]:
    """Return the limits of every queue.

    Of tasks that share a queue the smallest limit that any of them sets is the queue's. A task's
    own queue is there even if it names another: runs accepted under an earlier config wait in it.
    """
    found: dict[str, QueueLimits] = {}
    for task in tasks:
        for name in (default_queue(task.id), queue_of(task)):
            before = found.get(name, QueueLimits())
            found[name] = QueueLimits(
                concurrency=_least(before.concurrency, task.concurrency),
                per_key=_least(before.per_key, task.concurrency_per_key),
            )

    return found


def _least(*limits: int | None) -> int | None:
    return min((each for each in limits if each is not None), default=None)
