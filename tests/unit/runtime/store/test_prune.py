from __future__ import annotations

import asyncio

import structlog

from td_runtime.config import StoreConfig
from td_runtime.retention import Retention
from td_runtime.store import Completed, NewRun, RunQuery, Status
from td_runtime.store.check import check
from tests.unit.runtime.store.helpers import accept, claim, claimed, places, queues, status


async def finished(store, clock, count: int, *, apart: float = 1.0, **facts) -> list[str]:
    """Runs of `a` that ended one after the other."""
    ids = []
    for _ in range(count):
        (answer,) = await store.accept([NewRun(task="a", **facts)])
        (run,) = await claim(store, 1)
        await store.finish(run.id, 1, "w1", Completed())
        ids.append(answer.id)
        clock.now += apart
    return ids


async def left(store) -> list[str]:
    """The ids of all runs there are, oldest first."""
    return [run.id for run in await store.find(RunQuery(limit=10_000))][::-1]


async def test_old_runs_go(store, clock, path):
    """By the time of their end; with payload, metadata and tags, and nothing is left over."""
    ids = await finished(store, clock, 6, tags=("x", "y"), metadata=b"{}")

    step = await store.prune(finished_before=clock.now - 2.5, keep=None)

    assert (step.deleted, step.more) == (4, False)
    assert await left(store) == ids[4:]
    assert [run.id for run in await store.find(RunQuery(tag="x"))] == ids[:3:-1]
    assert (await store.counts())[Status.COMPLETED] == 2
    assert check(path) == []


async def test_the_oldest_above_the_count_go(store, clock):
    """However young they are; both limits hold together."""
    ids = await finished(store, clock, 6)

    assert (await store.prune(finished_before=None, keep=4)).deleted == 2
    assert await left(store) == ids[2:]
    assert (await store.prune(finished_before=clock.now - 1.5, keep=3)).deleted == 3
    assert await left(store) == ids[5:]
    assert (await store.prune(finished_before=None, keep=0)).deleted == 1


async def test_unfinished_runs_never_go(store, clock):
    """In no status, however old."""
    waits = await claimed(store)
    await store.wait(waits.id, 1, "w1")
    executes = await claimed(store)
    queued = await accept(store, "a")
    await store.accept([NewRun(task="a", run_at=9e9)])
    clock.now += 1e9

    await store.prune(finished_before=clock.now, keep=0)

    assert len(await left(store)) == 4
    assert await status(store, executes) is Status.EXECUTING
    assert await status(store, queued[0]) is Status.QUEUED


async def test_a_child_its_parent_may_ask_for_again_stays(store, clock):
    """R9: a parent that starts over finds the children it has waited for; afterwards they go."""
    parent = await claimed(store)
    key = f"{parent.id}:0:0"
    (child,) = await store.accept([NewRun(task="a", parent_id=parent.id, idempotency_key=key)])
    (run,) = await claim(store, 1)
    await store.finish(run.id, 1, "w1", Completed())
    clock.now += 100

    assert (await store.prune(finished_before=clock.now, keep=0)).deleted == 0
    await store.finish(parent.id, 1, "w1", Completed())
    clock.now += 100
    assert (await store.prune(finished_before=clock.now, keep=0)).deleted == 2
    assert await store.get(child.id) is None


async def test_a_key_outlives_its_run(store, clock):
    """What was done under a key is not done again just because its record is gone."""
    (answer,) = await store.accept([NewRun(task="a", idempotency_key="k", idempotency_ttl=1000)])
    (run,) = await claim(store, 1)
    await store.finish(run.id, 1, "w1", Completed())
    await store.prune(finished_before=None, keep=0)
    assert await left(store) == []

    (again,) = await store.accept([NewRun(task="a", idempotency_key="k")])
    assert (again.id, again.created) == (answer.id, False)
    clock.now += 1001
    (anew,) = await store.accept([NewRun(task="a", idempotency_key="k")])
    assert anew.created


async def test_the_past_goes_in_small_steps(store, clock):
    """1,000 runs take several steps, each of a bounded number, and of bounded bytes."""
    await store.accept([NewRun(task="a")] * 1000)
    for run in await store.claim(places(1000), queues=queues(), now=clock.now):
        store.finish(run.id, 1, "w1", Completed())
    sizes = []
    while (step := await store.prune(finished_before=None, keep=0)).more:
        sizes.append(step.deleted)
    sizes.append(step.deleted)
    assert sum(sizes) == 1000
    assert max(sizes) <= 200

    await finished(store, clock, 5, payload=b" " * 3_000_000)
    first = await store.prune(finished_before=None, keep=0)
    assert (first.deleted, first.more) == (2, True)


async def test_a_sweep_deletes_all_that_may_go(store, clock):
    """Many steps, others commit between them, and one event says how many went."""
    await store.accept([NewRun(task="a")] * 1000)
    for run in await store.claim(places(1000), queues=queues(), now=clock.now):
        store.finish(run.id, 1, "w1", Completed())
    await accept(store, "a")
    config = StoreConfig(retention_age=1e9, retention_count=10)

    with structlog.testing.capture_logs() as logs:
        deleted, others = await asyncio.gather(
            Retention(store, config, pause=0, clock=clock).sweep(), accept(store, *["a"] * 5)
        )

    assert deleted == 990
    assert len(await left(store)) == 16
    assert [(each["event"], each["runs"]) for each in logs] == [("store.pruned", 990)]
    assert len(others) == 5
