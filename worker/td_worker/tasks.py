"""Trigger other runs from inside a run: ``from td_worker import tasks``.

```python
async def parent(payload):
    results = await tasks.batch_trigger_and_wait("child", [1, 2, 3])
    return [result.unwrap() for result in results]
```

While a parent waits for its children it frees its place in the worker (rule R9). Should the parent
start over, the children that it triggered with ``…_and_wait`` are found again, not started twice.

Plain ``def`` tasks use the same names from :mod:`td_worker.sync`.
"""

import asyncio
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import msgspec

from td_worker import context
from td_worker.encoding import encode_json
from td_worker.errors import SubtaskUnwrapError
from td_worker.hooks import Wait, waiting
from td_worker.messages import ChildOutcome, RunError, TriggerItem

__all__ = [
    "RunHandle",
    "RunResult",
    "batch_trigger",
    "batch_trigger_and_wait",
    "trigger",
    "trigger_and_wait",
]


@dataclass(frozen=True, slots=True)
class RunHandle:
    """
    A run that was accepted: it will be executed at least once, whatever dies (R1).

    ```python
    handle = await tasks.trigger("child", 1)
    print(handle.id)
    ```
    """

    id: str
    task: str


@dataclass(frozen=True, slots=True)
class RunResult:
    """
    How a run ended that was waited for.

    ```python
    result = await tasks.trigger_and_wait("child", 1)
    print(result.output if result.ok else result.error)
    ```
    """

    id: str
    task: str
    status: str
    """``COMPLETED``, ``FAILED``, ``CRASHED``, ``TIMED_OUT``, ``CANCELED`` or ``EXPIRED``."""
    output: Any = None
    error: RunError | None = None

    @property
    def ok(self) -> bool:
        """Whether the run completed."""
        return self.status == "COMPLETED"

    def unwrap(self) -> Any:
        """Return the output.

        Raises:
            SubtaskUnwrapError: The run did not complete; carries its id, task, status and error.
        """
        if not self.ok:
            raise SubtaskUnwrapError(self.id, self.task, self.status, self.error)

        return self.output


async def trigger(
    task_id: str, payload: Any = None, *, idempotency_key: str | None = None
) -> RunHandle:
    """Ask for a run of *task_id* and return as soon as it is durably accepted.

    ```python
    handle = await tasks.trigger("child", {"page": 1}, idempotency_key="page-1")
    ```

    Args:
        task_id: Id of a task in the config file.
        payload: Anything JSON can say; dataclasses and msgspec structs too.
        idempotency_key: A key that exists already returns the run that has it.

    Raises:
        TriggerRefusedError: There is no such task, the payload is too large, or no room is left.
        NotInTaskError: Called outside a task.
    """
    future = start_trigger(task_id, [payload], idempotency_key=idempotency_key)

    return handles(task_id, await asyncio.wrap_future(future))[0]


async def batch_trigger(task_id: str, payloads: Iterable[Any]) -> list[RunHandle]:
    """Ask for one run of *task_id* per payload; all are accepted, or none.

    ```python
    handles = await tasks.batch_trigger("child", [1, 2, 3])
    ```

    Raises:
        TriggerRefusedError: As :func:`trigger`.
    """
    return handles(task_id, await asyncio.wrap_future(start_trigger(task_id, list(payloads))))


async def trigger_and_wait(task_id: str, payload: Any = None) -> RunResult:
    """Trigger a child run and wait for its outcome; a child that failed is a result, not raised.

    ```python
    output = (await tasks.trigger_and_wait("child", 1)).unwrap()
    ```

    Raises:
        TriggerRefusedError: As :func:`trigger`.
    """
    return (await _wait_for(task_id, [payload], Wait(type="task", ids=(task_id,))))[0]


async def batch_trigger_and_wait(task_id: str, payloads: Iterable[Any]) -> list[RunResult]:
    """Trigger one child run per payload and wait for all; results in the order of *payloads*.

    ```python
    results = await tasks.batch_trigger_and_wait("child", [1, 2, 3])
    outputs = [result.output for result in results if result.ok]
    ```

    Raises:
        TriggerRefusedError: As :func:`trigger`.
    """
    return await _wait_for(task_id, list(payloads), Wait(type="batch", ids=(task_id,)))


async def _wait_for(task_id: str, payloads: list[Any], wait: Wait) -> list[RunResult]:
    async with waiting(wait):
        future = start_trigger_and_wait(task_id, payloads)
        outcomes = await asyncio.wrap_future(future)

    return [result(outcome) for outcome in outcomes]


def start_trigger(
    task_id: str, payloads: list[Any], *, idempotency_key: str | None = None
) -> "Future[list[str]]":
    """Send the request of :func:`trigger` and return its future; shared with the blocking twin."""
    execution = context.current()
    items = [
        TriggerItem(task=task_id, payload=encode_json(payload), idempotency_key=idempotency_key)
        for payload in payloads
    ]

    return execution.messenger.trigger(execution.run.id, execution.attempt.number, items)


def start_trigger_and_wait(task_id: str, payloads: list[Any]) -> "Future[list[ChildOutcome]]":
    """Send the request of :func:`batch_trigger_and_wait` and return its future.

    The idempotency keys are (parent run, call number, index): the n-th waiting call of a run that
    starts over finds the children of the n-th waiting call before (R9).
    """
    execution = context.current()
    call = execution.next_call()
    items = [
        TriggerItem(
            task=task_id,
            payload=encode_json(payload),
            idempotency_key=f"{execution.run.id}:{call}:{index}",
        )
        for index, payload in enumerate(payloads)
    ]

    return execution.messenger.trigger_and_wait(execution.run.id, execution.attempt.number, items)


def handles(task_id: str, run_ids: list[str]) -> list[RunHandle]:
    """Return the answer of the supervisor as handles."""
    return [RunHandle(run_id, task_id) for run_id in run_ids]


def result(outcome: ChildOutcome) -> RunResult:
    """Return a child's outcome as the parent sees it."""
    output = msgspec.json.decode(outcome.output) if outcome.output else None

    return RunResult(outcome.id, outcome.task, outcome.status, output, outcome.error)
