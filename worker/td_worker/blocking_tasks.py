"""The plain ``def`` twin of :mod:`td_worker.tasks`: ``from td_worker.sync import tasks``."""

from collections.abc import Iterable
from typing import Any

from td_worker import tasks
from td_worker.context import refuse_on_event_loop
from td_worker.hooks import Wait, waiting_blocked
from td_worker.tasks import RunHandle, RunResult

__all__ = [
    "RunHandle",
    "RunResult",
    "batch_trigger",
    "batch_trigger_and_wait",
    "trigger",
    "trigger_and_wait",
]


def trigger(task_id: str, payload: Any = None, *, idempotency_key: str | None = None) -> RunHandle:
    """
    Ask for a run; see :func:`td_worker.tasks.trigger`.

    ```python
    handle = tasks.trigger("child", {"page": 1}, idempotency_key="page-1")
    ```
    """
    refuse_on_event_loop("tasks.trigger")
    future = tasks.start_trigger(task_id, [payload], idempotency_key=idempotency_key)

    return tasks.handles(task_id, future.result())[0]


def batch_trigger(task_id: str, payloads: Iterable[Any]) -> list[RunHandle]:
    """
    Ask for one run per payload; see :func:`td_worker.tasks.batch_trigger`.

    ```python
    handles = tasks.batch_trigger("child", [1, 2, 3])
    ```
    """
    refuse_on_event_loop("tasks.batch_trigger")

    return tasks.handles(task_id, tasks.start_trigger(task_id, list(payloads)).result())


def trigger_and_wait(task_id: str, payload: Any = None) -> RunResult:
    """
    Trigger a child and wait for it; see :func:`td_worker.tasks.trigger_and_wait`.

    ```python
    output = tasks.trigger_and_wait("child", 1).unwrap()
    ```
    """
    refuse_on_event_loop("tasks.trigger_and_wait")

    return _wait_for(task_id, [payload], Wait(type="task", ids=(task_id,)))[0]


def batch_trigger_and_wait(task_id: str, payloads: Iterable[Any]) -> list[RunResult]:
    """
    Trigger children and wait for all; see :func:`td_worker.tasks.batch_trigger_and_wait`.

    ```python
    results = tasks.batch_trigger_and_wait("child", [1, 2, 3])
    outputs = [result.output for result in results if result.ok]
    ```
    """
    refuse_on_event_loop("tasks.batch_trigger_and_wait")

    return _wait_for(task_id, list(payloads), Wait(type="batch", ids=(task_id,)))


def _wait_for(task_id: str, payloads: list[Any], wait: Wait) -> list[RunResult]:
    with waiting_blocked(wait):
        outcomes = tasks.start_trigger_and_wait(task_id, payloads).result()

    return [tasks.result(outcome) for outcome in outcomes]
