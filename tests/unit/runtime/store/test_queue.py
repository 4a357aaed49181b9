"""Delays, expiries, priorities, queues and concurrency keys."""

from __future__ import annotations

import pytest

from td_runtime.store import NewRun, QueueLimits, Status
from tests.unit.runtime.store.helpers import (
    BOOM,
    FAR,
    accept,
    claim,
    pass_time,
    places,
    queues,
    reload,
    status,
)
from tests.unit.runtime.store.test_claim import counting

ONE_A_KEY = {"task/a": QueueLimits(per_key=1)}


async def keyed(store, *keys: str | None) -> list[str]:
    """Accept a run of `a` for each concurrency key."""
    accepted = await store.accept([NewRun(task="a", concurrency_key=key) for key in keys])
    return [each.id for each in accepted]


async def take(store, limits=ONE_A_KEY, capacity: int = 10) -> list[str]:
    """Hand out what may start; return the ids."""
    return [run.id for run in await store.claim(places(capacity), queues=limits, now=FAR)]


async def finish(store, run_id: str) -> None:
    run = await reload(store, run_id)
    assert await store.requeue(run_id, run.attempt, "w1", excused=True)


async def test_a_delayed_run_is_queued_when_its_time_has_come(store, clock):
    """DELAYED, in no hand-out, until `pass_time` says QUEUED; never a moment early."""
    (answer,) = await store.accept([NewRun(task="a", run_at=clock.now + 60)])

    early = await store.pass_time(clock.now + 59.9)
    assert (early.queued, await status(store, answer.id)) == ((), Status.DELAYED)
    assert await store.claim(places(1), queues=queues(), now=FAR) == []

    due = await store.pass_time(clock.now + 60)
    assert [run.id for run in due.queued] == [answer.id]
    assert await status(store, answer.id) is Status.QUEUED
    assert await take(store) == [answer.id]
    assert await store.next_due_at() is None


async def test_a_run_that_does_not_start_in_time_expires(store, clock):
    """EXPIRED at its time, counted from when it could start; with an end, and never handed out."""
    first, late = await store.accept(
        [NewRun(task="a", ttl=10), NewRun(task="a", ttl=10, run_at=clock.now + 5)]
    )
    assert await store.next_due_at() == clock.now + 5

    due = await store.pass_time(clock.now + 10)

    assert [run.id for run in due.expired] == [first.id]
    run = await reload(store, first.id)
    assert (run.status, run.finished_at, run.expires_at) == (Status.EXPIRED, clock.now + 10, None)
    assert await status(store, late.id) is Status.QUEUED
    assert await store.next_due_at() == clock.now + 15
    assert (await store.counts())[Status.EXPIRED] == 1


async def test_a_run_that_has_started_does_not_expire(store, clock):
    """Not while it executes, nor after it was requeued or waits for its next attempt."""
    (answer,) = await store.accept([NewRun(task="a", ttl=10)])
    assert await take(store) == [answer.id]
    assert await store.next_due_at() is None
    await store.requeue(answer.id, 1, "w1", excused=True)

    assert await store.pass_time(FAR) == await store.pass_time(FAR)
    assert await status(store, answer.id) is Status.QUEUED


async def test_time_passes_in_small_steps(store, clock):
    """Thousands that are due at once are queued a few hundred a change."""
    await store.accept([NewRun(task="a", run_at=clock.now + 1)] * 600)

    sizes = []
    while (due := await store.next_due_at()) is not None:
        sizes.append(len((await store.pass_time(due)).queued))

    assert sum(sizes) == 600
    assert max(sizes) < 300


async def test_priority_is_seconds_of_head_start(store, clock):
    """A run with 10 goes before those that were accepted up to 10 s earlier, not 11."""
    (oldest,) = await accept(store, "a")
    clock.now += 5
    (old,) = await accept(store, "a")
    clock.now += 8
    ((first), (second)) = await store.accept(
        [NewRun(task="a", priority=10), NewRun(task="a", priority=10.5)]
    )

    assert await take(store) == [oldest, second.id, first.id, old]


async def test_priority_counts_for_retries_and_delays_too(store, clock):
    """The head start is over the moment a run is due."""
    (slow,) = await store.accept([NewRun(task="a", run_at=clock.now + 10)])
    (fast,) = await store.accept([NewRun(task="a", priority=5)])
    await take(store)
    await store.retry(fast.id, 1, "w1", run_at=clock.now + 12, error=BOOM)
    await pass_time(store)

    assert await take(store) == [fast.id, slow.id]


async def test_a_shared_queue_has_one_limit(store):
    """Runs of two tasks in one queue, in the order of acceptance, two at once."""
    accepted = await store.accept([NewRun(task=task, queue="shared") for task in "abab"])
    ids = [each.id for each in accepted]
    limits = {"shared": QueueLimits(concurrency=2), "task/a": QueueLimits()}

    assert await take(store, limits) == ids[:2]
    assert await take(store, limits) == []
    await store.wait(ids[0], 1, "w1")
    assert await take(store, limits) == [ids[2]], "a run that waits frees its place in the queue"
    await store.requeue(ids[1], 1, "w1", excused=True)
    assert await take(store, limits) == [ids[1]], "at its old place, before the last one"


async def test_a_key_has_a_limit_of_its_own(store):
    """One at a time for each key, in order; runs without a key are not held up."""
    ids = await keyed(store, "x", "x", "y", None, "x", None)

    assert await take(store) == [ids[0], ids[2], ids[3], ids[5]]
    assert await take(store) == []
    await store.retry(ids[0], 1, "w1", run_at=FAR + 5, error=BOOM)
    assert await take(store) == [ids[1]]
    await store.wait(ids[1], 1, "w1")
    assert await take(store) == [ids[4]]


@pytest.mark.parametrize("end", ["finish", "cancel", "expire", "release"])
async def test_every_end_lets_the_next_of_its_key_in(store, clock, end):
    """However the run ends that has the key's place, the next one gets it: none is forgotten."""
    first, second = await keyed(store, "x", "x")
    if end == "expire":
        await store.cancel([first])
        (first,) = [
            a.id for a in await store.accept([NewRun(task="a", concurrency_key="x", ttl=1)])
        ]
        await store.cancel([second])
        (second,) = await keyed(store, "x")
        await store.pass_time(clock.now + 2)
    else:
        assert await take(store) == [first]
    if end == "finish":
        await store.retry(first, 1, "w1", run_at=9e9, error=BOOM)
    elif end == "cancel":
        await store.wait(first, 1, "w1")
        await store.cancel([first])
    elif end == "release":
        await store.release("w1")
        await store.cancel([first])

    assert await take(store) == [second]


async def test_each_run_of_a_full_key_is_passed_over_once(store, path):
    """With 5,000 runs of a key at its limit in front, the second hand-out reads just the others."""
    for _ in range(5):
        await store.accept([NewRun(task="a", concurrency_key="x")] * 1000)
    (other,) = await keyed(store, "y")
    taken = await take(store, capacity=5)
    assert len(taken) == 1
    rounds = 0
    while store.is_behind:
        rounds += 1
        taken += await take(store, capacity=5)
    assert taken[1:] == [other]
    assert rounds == 9

    (last,) = await keyed(store, "z")
    steps, reader = counting(path)
    from td_runtime.store.sqlite_claim import choose

    chosen = choose(reader, ONE_A_KEY, 5).taken
    reader.close()
    assert len(chosen) == 1
    assert steps.count < 300
    assert await take(store) == [last]
    assert (await store.counts())[Status.QUEUED] == 4999


async def test_a_raised_limit_lets_parked_runs_in(store):
    """After `reconsider` as many start as the new limit allows; without a limit all of them."""
    ids = await keyed(store, *["x"] * 5)
    assert await take(store) == ids[:1]
    two = {"task/a": QueueLimits(per_key=2)}

    await store.reconsider(two)
    assert await take(store, two) == ids[1:2]
    await store.reconsider({"task/a": QueueLimits()})
    assert await take(store, {"task/a": QueueLimits()}) == ids[2:]


async def test_runs_of_a_task_that_is_gone_wait_aside(store):
    """They are passed over once, keep their place, and start when the task is back."""
    accepted = await store.accept([NewRun(task=task, queue="q") for task in "gga"])
    ids = [each.id for each in accepted]
    limits = {"q": QueueLimits()}

    runs = await store.claim(places(5), queues=limits, tasks={"a"}, now=FAR)
    assert [run.id for run in runs] == ids[2:]
    assert await store.claim(places(5), queues=limits, tasks={"a"}, now=FAR) == []
    assert await status(store, ids[0]) is Status.QUEUED
    await store.reconsider(limits)
    runs = await store.claim(places(5), queues=limits, tasks={"a", "g"}, now=FAR)
    assert [run.id for run in runs] == ids[:2]


async def test_a_key_that_held_a_gone_task_is_freed(store):
    """A run that is set aside for its task gives the place of its key to the next one."""
    g, a, b = await store.accept(
        [NewRun(task=task, queue="q", concurrency_key="x") for task in "gaa"]
    )
    limits = {"q": QueueLimits(per_key=1)}
    known = {"tasks": {"a"}, "now": FAR}

    assert [r.id for r in await store.claim(places(5), queues=limits, **known)] == [a.id]
    await store.retry(a.id, 1, "w1", run_at=9e9, error=BOOM)
    assert [r.id for r in await store.claim(places(5), queues=limits, **known)] == [b.id]
    assert await status(store, g.id) is Status.QUEUED


async def test_a_worker_is_on_record(store):
    """Number, process and owner of the newest attempt."""
    from td_runtime.store import Place

    (run_id,) = await accept(store, "a")
    await store.claim([Place("w7", 4711, 7)], queues=queues(), now=FAR)

    run = await reload(store, run_id)
    assert (run.owner, run.pid, run.worker) == ("w7", 4711, 7)
    assert await claim(store) == []
