from __future__ import annotations

import pytest

from td_runtime.store import (
    Canceled,
    Completed,
    NewRun,
    ParentCanceledError,
    Status,
)
from tests.unit.runtime.store.helpers import BOOM, accept, claim, claimed, reload, status


async def test_runs_that_do_not_execute_are_canceled_at_once(store, clock):
    """QUEUED, DELAYED, RETRYING and WAITING alike: with an end, who asked, and no attempt more."""
    waits, retries = await claimed(store), await claimed(store)
    await store.wait(waits.id, 1, "w1")
    await store.retry(retries.id, 1, "w1", run_at=9e9, error=BOOM)
    (delayed,) = await store.accept([NewRun(task="a", run_at=9e9, ttl=9)])
    (queued,) = await accept(store, "a")
    ids = [waits.id, retries.id, delayed.id, queued]
    clock.now += 3

    done = await store.cancel(ids, by="ann")

    assert [run.id for run in done.canceled] == ids
    assert (done.requested, done.finished, done.unknown) == ((), (), ())
    for run_id in ids:
        run = await reload(store, run_id)
        assert (run.status, run.canceled_by, run.finished_at, run.expires_at) == (
            Status.CANCELED,
            "ann",
            clock.now,
            None,
        )
    assert await claim(store) == []
    assert await store.next_due_at() is None
    assert (await store.counts())[Status.CANCELED] == 4


async def test_a_late_result_of_a_canceled_run_is_refused(store):
    """The run that waited was canceled in the store; what its worker still says changes nothing."""
    run = await claimed(store)
    await store.wait(run.id, 1, "w1")
    await store.cancel([run.id])

    assert not await store.finish(run.id, 1, "w1", Completed())
    assert not await store.resume(run.id, 1, "w1")
    assert await store.release("w1") == []
    assert await status(store, run) is Status.CANCELED


async def test_a_run_that_executes_is_asked_to_stop(store, clock):
    """It goes on until its worker says how it ended; who asked first, and when, is on record."""
    run = await claimed(store)

    done = await store.cancel([run.id], by="ann")
    clock.now += 5
    await store.cancel([run.id], by="bob")

    assert [each.id for each in done.requested] == [run.id]
    after = await reload(store, run)
    assert (after.status, after.canceled_by) == (Status.EXECUTING, "ann")
    assert after.cancel_requested_at == clock.now - 5
    assert await store.finish(run.id, 1, "w1", Canceled())


@pytest.mark.parametrize("end", ["retry", "requeue", "release", "restart"])
async def test_a_run_to_be_canceled_is_not_tried_again(store, clock, end):
    """Whether it fails, its worker drains or dies, or the supervisor: it is CANCELED then."""
    run = await claimed(store)
    await store.cancel([run.id], by="ann")
    clock.now += 2

    match end:
        case "retry":
            answer = await store.retry(run.id, 1, "w1", run_at=0, error=BOOM)
            assert answer is Status.CANCELED
        case "requeue":
            answer = await store.requeue(run.id, 1, "w1", excused=True)
            assert answer is Status.CANCELED
        case "release":
            assert [each.status for each in await store.release("w1")] == [Status.CANCELED]
        case "restart":
            (after,) = await store.requeue_unfinished()
            assert after.status is Status.CANCELED

    after = await reload(store, run)
    assert (after.status, after.finished_at) == (Status.CANCELED, clock.now)
    assert await claim(store) == []
    assert await store.unfinished() == 0


async def test_what_is_over_or_unknown_is_said(store):
    """Neither is an error; the rest is canceled."""
    run = await claimed(store)
    await store.finish(run.id, 1, "w1", Completed())
    (queued,) = await accept(store, "a")

    done = await store.cancel([run.id, "run_nope", queued, queued])

    assert (done.finished, done.unknown) == ((run.id,), ("run_nope",))
    assert [each.id for each in done.canceled] == [queued]
    assert await status(store, run) is Status.COMPLETED


async def family(store) -> tuple[str, str, str]:
    """A run that executes, its child, and the child's child."""
    root = await claimed(store)
    (child,) = await store.accept([NewRun(task="b", parent_id=root.id)])
    (grandchild,) = await store.accept([NewRun(task="b", parent_id=child.id)])
    return root.id, child.id, grandchild.id


async def test_descendants_are_left_alone_or_canceled_too(store):
    """By option, however deep; a stranger is never touched."""
    root, child, grandchild = await family(store)
    (stranger,) = await accept(store, "b")

    await store.cancel([root])
    assert await status(store, child) is Status.QUEUED
    done = await store.cancel([root], descendants=True)

    assert [run.id for run in done.requested] == [root]
    assert [run.id for run in done.canceled] == [child, grandchild]
    assert await status(store, stranger) is Status.QUEUED


async def test_a_run_canceled_with_its_children_gets_no_more(store):
    """What it triggers before it has stopped is refused; a run canceled alone may go on."""
    root, *_ = await family(store)
    await store.cancel([root])
    (late,) = await store.accept([NewRun(task="b", parent_id=root)])
    await store.cancel([root], descendants=True)

    with pytest.raises(ParentCanceledError):
        await store.accept([NewRun(task="b", parent_id=root)])

    assert await status(store, late.id) is Status.CANCELED
