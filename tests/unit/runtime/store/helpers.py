"""What the store's tests say often."""

from __future__ import annotations

from td_runtime.store import NewRun, Place, Run, RunError, RunStore, Status

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


async def claim(
    store: RunStore,
    capacity: int = 100,
    *,
    owner: str = "w1",
    now: float = FAR,
    **limits: int,
) -> list[Run]:
    """Hand runs out to a worker; without limits, of task `a` only."""
    return await store.claim(places(capacity, owner), limits=limits or {"a": 100}, now=now)


async def claimed(store: RunStore, task: str = "a", *, owner: str = "w1") -> Run:
    """Accept a run and hand it out."""
    await accept(store, task)
    (run,) = await store.claim(places(1, owner), limits={task: 1}, now=FAR)

    return run


async def reload(store: RunStore, run: Run | str) -> Run:
    """Read a run that must be there."""
    found = await store.get(run if isinstance(run, str) else run.id)
    assert found is not None

    return found


async def status(store: RunStore, run: Run | str) -> Status:
    """Read the status of a run that must be there."""
    return (await reload(store, run)).status
