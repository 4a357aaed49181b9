"""The plain ``def`` twin of :mod:`td_worker.tasks`: ``from td_worker.sync import tasks``."""

from collections.abc import Callable, Iterable
from typing import Any, Literal, Unpack

from td_worker import tasks
from td_worker.context import refuse_on_event_loop
from td_worker.hooks import Wait, waiting_blocked
from td_worker.messages import TriggerItem
from td_worker.tasks import RunHandle, RunResult
from td_worker.trigger_options import TriggerOptions, make_item, make_items

__all__ = [
    "RunHandle",
    "RunResult",
    "batch_trigger",
    "batch_trigger_and_wait",
    "trigger",
    "trigger_and_wait",
]


def trigger(task_id: str, payload: Any = None, **options: Unpack[TriggerOptions]) -> RunHandle:
    """
    Ask for a run; see :func:`td_worker.tasks.trigger`.

    ```python
    handle = tasks.trigger("child", {"page": 1}, idempotency_key="page-1")
    ```
    """
    refuse_on_event_loop("tasks.trigger")
    future = tasks.start_trigger([make_item(task_id, payload, options)])

    return tasks.handles(task_id, future.result())[0]


def batch_trigger(
    task_id: str, payloads: Iterable[Any], **options: Unpack[TriggerOptions]
) -> list[RunHandle]:
    """
    Ask for one run per payload; see :func:`td_worker.tasks.batch_trigger`.

    ```python
    handles = tasks.batch_trigger("child", [1, 2, 3])
    ```
    """
    refuse_on_event_loop("tasks.batch_trigger")

    future = tasks.start_trigger(make_items(task_id, payloads, options))

    return tasks.handles(task_id, future.result())


def trigger_and_wait(
    task_id: str, payload: Any = None, **options: Unpack[TriggerOptions]
) -> RunResult:
    """
    Trigger a child and wait for it; see :func:`td_worker.tasks.trigger_and_wait`.

    ```python
    output = tasks.trigger_and_wait("child", 1).unwrap()
    ```
    """
    refuse_on_event_loop("tasks.trigger_and_wait")

    results = _wait_for(lambda: tasks.child_items(task_id, payload, options), "task", task_id)

    return results[0]


def batch_trigger_and_wait(
    task_id: str, payloads: Iterable[Any], **options: Unpack[TriggerOptions]
) -> list[RunResult]:
    """
    Trigger children and wait for all; see :func:`td_worker.tasks.batch_trigger_and_wait`.

    ```python
    results = tasks.batch_trigger_and_wait("child", [1, 2, 3])
    outputs = [result.output for result in results if result.ok]
    ```
    """
    refuse_on_event_loop("tasks.batch_trigger_and_wait")

    return _wait_for(lambda: tasks.children_items(task_id, payloads, options), "batch", task_id)


def _wait_for(
    items: Callable[[], list[TriggerItem]], kind: Literal["task", "batch"], task_id: str
) -> list[RunResult]:
    with waiting_blocked(Wait(type=kind, ids=(task_id,))):
        outcomes = tasks.start_trigger_and_wait(items()).result()

    return [tasks.result(outcome) for outcome in outcomes]
