"""How often a run is tried whose number of attempts was given at its trigger."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from td_runtime.config import RetryConfig, TaskConfig
from td_runtime.outcomes import Outcomes
from td_runtime.queues import queue_limits
from td_runtime.store import NewRun, Place, Run, RunStore, open_store
from td_runtime.suspects import Suspects

OWNER = "owner"


async def blame(store: RunStore, task: TaskConfig, run: Run) -> Run:
    """Have the worker of *run* die, and return what became of it."""
    recorded: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    outcomes = Outcomes(
        store,
        {task.id: task},
        suspects=Suspects(),
        on_recorded=lambda *_: recorded.set_result(None),
        on_failed=recorded.set_exception,
    )
    outcomes.blame(run, -9)
    await recorded

    return (await store.get_many([run.id]))[0]


async def claim(store: RunStore, task: TaskConfig) -> Run:
    (run,) = await store.claim([Place(OWNER, 1, 1)], queues=queue_limits([task]), now=1e12)

    return run


@pytest.mark.parametrize(
    ("of_task", "of_run", "executed"),
    [(1, 3, 3), (10, 2, 2), (10, 1, 1), (2, None, 2)],
)
async def test_worker_deaths_use_up_the_attempts_of_the_run(
    tmp_path: Path, of_task: int, of_run: int | None, executed: int
) -> None:
    """More than the task's or fewer, what the run was given counts, up to its max_crashes."""
    retry = RetryConfig(max_attempts=of_task, min_timeout=0, max_timeout=0)
    task = TaskConfig(id="a", entrypoint="tasks:a", retry=retry, max_crashes=100)
    async with open_store(tmp_path / "runs.db") as store:
        await store.accept([NewRun(task="a", payload=b"1", max_attempts=of_run)])
        run = await blame(store, task, await claim(store, task))
        while not run.status.is_finished:
            await store.pass_time(1e12)
            run = await blame(store, task, await claim(store, task))

    assert (run.status, run.attempt) == ("CRASHED", executed)
