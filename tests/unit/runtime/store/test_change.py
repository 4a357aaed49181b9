from __future__ import annotations

from td_runtime.store import Completed, NewRun, RunQuery, Status
from tests.unit.runtime.store.helpers import accept, claim, claimed, pass_time, reload, status


async def test_a_delayed_run_is_moved_to_another_time(store, clock):
    """Earlier or later: it is handed out in the order of its new time, and its ttl counts from it.

    What has no ttl has none afterwards.
    """
    first, second = [
        each.id
        for each in await store.accept(
            [
                NewRun(task="a", run_at=clock.now + 100, ttl=90),
                NewRun(task="a", run_at=clock.now + 50, priority=5),
            ]
        )
    ]
    assert await store.reschedule(first, clock.now + 10)
    assert await store.reschedule(second, clock.now + 20)

    found = [await reload(store, run_id) for run_id in (first, second)]
    assert [run.run_at - clock.now for run in found] == [10, 20]
    assert [run.status for run in found] == [Status.DELAYED] * 2
    assert (found[0].expires_at, found[1].expires_at) == (clock.now + 100, None)
    assert await store.next_due_at() == clock.now + 10
    await pass_time(store, clock.now + 10)
    assert await status(store, first) is Status.QUEUED
    assert [run.id for run in await claim(store, now=clock.now + 20)] == [first, second]


async def test_only_delayed_runs_are_moved(store):
    """One that waits in its queue, executes or has ended stays, and so does one that is not."""
    done, busy = await claimed(store), await claimed(store)
    await store.finish(done.id, 1, "w1", Completed())
    (queued,) = await accept(store, "a")
    before = [await reload(store, run) for run in (done, busy, queued)]

    assert not any([await store.reschedule(run.id, 5e9) for run in before])
    assert not await store.reschedule("run_no", 5e9)
    assert [await reload(store, run) for run in before] == before


async def test_tags_are_added(store):
    """After those that it has, none twice; it is found by them, and they go with it."""
    (run,) = await store.accept([NewRun(task="a", tags=("x",))])
    (bare,) = await accept(store, "a")
    assert await store.add_tags(run.id, ("y", "x", "y", "z"))
    assert await store.add_tags(bare, ("y",))
    assert not await store.add_tags("run_no", ("y",))

    assert (await reload(store, run.id)).tags == ("x", "y", "z")
    assert [one.id for one in await store.find(RunQuery(tag="y"))] == [bare, run.id]
    await store.cancel([run.id, bare])
    await store.prune(finished_before=None, keep=0)
    assert await store.find(RunQuery(tag="y")) == []
    assert store._all("SELECT * FROM tags") == []
