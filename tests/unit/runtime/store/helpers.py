"""What the store's tests say often."""

from __future__ import annotations

from td_runtime.store import (
    NewRun,
    Place,
    QueueLimits,
    Run,
    RunError,
    RunStore,
    Status,
    default_queue,
)

BOOM = RunError(type="ValueError", message="boom", traceback="Traceback ...", retryable=True)
FAR = 2e9
"""Later than any `run_at` that a test does not mean to be late."""


async def accept(store: RunStore, *tasks: str) -> list[str]:
    """Accept a run of each task; return the ids."""
    accepted = await store.accept([NewRun(task=task) for task in tasks])

    return [each.id for each in accepted]


def places(count: int, owner: str = "w1", *, pid: int = 42) -> list[Place]:
    """Room for so many runs in one worker."""
    return [Place(owner, pid)] * count


def queues(**limits: int | None) -> dict[str, QueueLimits]:
    """The queues of these tasks, and how many runs of each may execute; without any, of `a`."""
    return {
        default_queue(task): QueueLimits(concurrency=limit)
        for task, limit in (limits or {"a": None}).items()
    }


async def pass_time(store: RunStore, now: float = FAR) -> None:
    """Let the time of all runs come that are due by then."""
    while (due := await store.next_due_at()) is not None and due <= now:
        await store.pass_time(now)


async def claim(
    store: RunStore,
    capacity: int = 100,
    *,
    owner: str = "w1",
    now: float = FAR,
    **limits: int | None,
) -> list[Run]:
    """Hand runs out to a worker once their time has come; without limits, of task `a` only."""
    await pass_time(store, now)

    return await store.claim(places(capacity, owner), queues=queues(**limits), now=now)


async def claimed(store: RunStore, task: str = "a", *, owner: str = "w1") -> Run:
    """Accept a run and hand it out."""
    await accept(store, task)
    (run,) = await store.claim(places(1, owner), queues=queues(**{task: None}), now=FAR)

    return run


async def reload(store: RunStore, run: Run | str) -> Run:
    """Read a run that must be there."""
    found = await store.get(run if isinstance(run, str) else run.id)
    assert found is not None

    return found


async def status(store: RunStore, run: Run | str) -> Status:
    """Read the status of a run that must be there."""
    return (await reload(store, run)).status
