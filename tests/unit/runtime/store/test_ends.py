from __future__ import annotations

from td_runtime.store import Completed, Failed, Finish, NewRun, Status
from td_runtime.store.check import check
from tests.unit.runtime.store.helpers import BOOM, FAR, claim, claimed, pass_time, status


async def counts(store) -> dict[Status, int]:
    """How many runs there are in each status that has any."""
    return {status: count for status, count in (await store.counts()).items() if count}


async def canceling(store) -> str:
    """A run that executes, and is to be canceled."""
    run = await claimed(store)
    await store.cancel([run.id])
    return run.id


async def test_every_way_to_an_end_is_counted_once(store, clock, path):
    """By an outcome, alone or with others, by cancellation at six moments, and by expiry."""
    first, *others = [await claimed(store) for _ in range(4)]
    assert await store.finish(first.id, 1, "w1", Failed(BOOM))
    ends = [Finish(run.id, 1, "w1", Completed(), 0, run.task) for run in others]
    assert await store.finish_all(ends) == [True] * 3
    assert await counts(store) == {Status.FAILED: 1, Status.COMPLETED: 3}

    await store.retry(await canceling(store), 1, "w1", run_at=FAR, error=BOOM)
    await store.requeue(await canceling(store), 1, "w1", excused=True)
    await canceling(store)
    await store.release("w1")
    await canceling(store)
    await store.requeue_unfinished()
    waits = await claimed(store)
    await store.wait(waits.id, 1, "w1")
    (queued,) = await store.accept([NewRun(task="a")])
    await store.cancel([queued.id, waits.id])
    await store.accept([NewRun(task="b", ttl=1.0)])
    await pass_time(store)

    assert await counts(store) == {
        Status.FAILED: 1,
        Status.COMPLETED: 3,
        Status.CANCELED: 6,
        Status.EXPIRED: 1,
    }
    assert check(path) == []


async def test_one_late_end_spoils_none_of_its_batch(store, path):
    """It is told apart from those that came in time, which are recorded and counted."""
    runs = [await claimed(store) for _ in range(3)]
    assert await store.finish(runs[1].id, 1, "w1", Failed(BOOM))

    ends = [Finish(run.id, 1, "w1", Completed(), 0, run.task) for run in runs]
    assert await store.finish_all(ends) == [True, False, True]

    assert await status(store, runs[1]) == Status.FAILED
    assert await counts(store) == {Status.FAILED: 1, Status.COMPLETED: 2}
    assert check(path) == []


async def test_runs_are_handed_out_in_their_order(store):
    """By priority first: not as their rows lie in the file."""
    accepted = await store.accept([NewRun(task="a", priority=float(at)) for at in range(9)])

    assert [run.id for run in await claim(store, 9)] == [each.id for each in accepted][::-1]
