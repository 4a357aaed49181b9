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
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal, Unpack

import msgspec

from td_worker import context
from td_worker.errors import SubtaskUnwrapError
from td_worker.hooks import Wait, waiting
from td_worker.messages import ChildOutcome, RunError, TriggerItem
from td_worker.trigger_options import TriggerOptions, make_item, make_items

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
    task_id: str, payload: Any = None, **options: Unpack[TriggerOptions]
) -> RunHandle:
    """Ask for a run of *task_id* and return as soon as it is durably accepted.

    ```python
    handle = await tasks.trigger("child", {"page": 1}, idempotency_key="page-1")
    later = await tasks.trigger("child", {"page": 2}, delay=60, tags=["pages"], max_attempts=5)
    ```

    Args:
        task_id: Id of a task in the config file.
        payload: Anything JSON can say; dataclasses, msgspec structs and pydantic models too.
        **options: See :class:`td_worker.trigger_options.TriggerOptions`.

    Raises:
        TypeError: There is no such option, or the payload is nothing that JSON can say.
        TriggerRefusedError: There is no such task, the payload is too large, or no room is left.
        NotInTaskError: Called outside a task.
    """
    future = start_trigger([make_item(task_id, payload, options)])

    return handles(task_id, await asyncio.wrap_future(future))[0]


async def batch_trigger(
    task_id: str, payloads: Iterable[Any], **options: Unpack[TriggerOptions]
) -> list[RunHandle]:
    """Ask for one run of *task_id* per payload; all are accepted, or none.

    ```python
    handles = await tasks.batch_trigger("child", [1, 2, 3])
    ```

    Args:
        task_id: Id of a task in the config file.
        payloads: One for each run; at most `limits.batch`.
        **options: For each of the runs. An idempotency key gets the payload's place added.

    Raises:
        TypeError: As :func:`trigger`.
        TriggerRefusedError: As :func:`trigger`.
    """
    items = make_items(task_id, payloads, options)

    return handles(task_id, await asyncio.wrap_future(start_trigger(items)))


async def trigger_and_wait(
    task_id: str, payload: Any = None, **options: Unpack[TriggerOptions]
) -> RunResult:
    """Trigger a child run and wait for its outcome; a child that failed is a result, not raised.

    ```python
    output = (await tasks.trigger_and_wait("child", 1)).unwrap()
    ```

    Without an idempotency key the child gets one of its own, by which a parent that starts over
    finds it again (R9).

    Args:
        task_id: Id of a task in the config file.
        payload: As for :func:`trigger`.
        **options: As for :func:`trigger`.

    Raises:
        TypeError: As :func:`trigger`.
        TriggerRefusedError: As :func:`trigger`.
    """
    results = await _wait_for(lambda: child_items(task_id, payload, options), "task", task_id)

    return results[0]


async def batch_trigger_and_wait(
    task_id: str, payloads: Iterable[Any], **options: Unpack[TriggerOptions]
) -> list[RunResult]:
    """Trigger one child run per payload and wait for all; results in the order of *payloads*.

    ```python
    results = await tasks.batch_trigger_and_wait("child", [1, 2, 3])
    outputs = [result.output for result in results if result.ok]
    ```

    Raises:
        TriggerRefusedError: As :func:`trigger`.
    """
    return await _wait_for(lambda: children_items(task_id, payloads, options), "batch", task_id)


async def _wait_for(
    items: Callable[[], list[TriggerItem]], kind: Literal["task", "batch"], task_id: str
) -> list[RunResult]:
    async with waiting(Wait(type=kind, ids=(task_id,))):
        outcomes = await asyncio.wrap_future(start_trigger_and_wait(items()))

    return [result(outcome) for outcome in outcomes]


def start_trigger(items: list[TriggerItem]) -> "Future[list[str]]":
    """Send the request of :func:`trigger` and return its future; shared with the blocking twin."""
    execution = context.current()

    return execution.messenger.trigger(execution.run.id, execution.attempt.number, items)


def start_trigger_and_wait(items: list[TriggerItem]) -> "Future[list[ChildOutcome]]":
    """Send the request of :func:`batch_trigger_and_wait` and return its future."""
    execution = context.current()

    return execution.messenger.trigger_and_wait(execution.run.id, execution.attempt.number, items)


def child_items(task_id: str, payload: Any, options: TriggerOptions) -> list[TriggerItem]:
    """Return the request for one child that is waited for, with a key by which it is found."""
    key = options.get("idempotency_key")

    return [make_item(task_id, payload, options, key=f"{_call_key()}:0" if key is None else key)]


def children_items(
    task_id: str, payloads: Iterable[Any], options: TriggerOptions
) -> list[TriggerItem]:
    """Return the requests for children that are waited for; see :func:`child_items`."""
    key = options.get("idempotency_key")

    return make_items(task_id, payloads, options, key=_call_key() if key is None else key)


def _call_key() -> str:
    """Return the beginning of the default idempotency keys of a waiting call.

    The n-th waiting call of a run that starts over finds the children of the n-th one before (R9).
    """
    execution = context.current()

    return f"{execution.run.id}:{execution.next_call()}"


def handles(task_id: str, run_ids: list[str]) -> list[RunHandle]:
    """Return the answer of the supervisor as handles."""
    return [RunHandle(run_id, task_id) for run_id in run_ids]


def result(outcome: ChildOutcome) -> RunResult:
    """Return a child's outcome as the parent sees it."""
    output = msgspec.json.decode(outcome.output) if outcome.output else None

    return RunResult(outcome.id, outcome.task, outcome.status, output, outcome.error)
