from __future__ import annotations

import pytest

from td_runtime.store import (
    Canceled,
    Completed,
    Crashed,
    Failed,
    NewRun,
    Status,
    TimedOut,
)
from tests.unit.runtime.store.helpers import BOOM, accept, claim, claimed, reload, status


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (Completed(b'{"ok":true}'), (Status.COMPLETED, b'{"ok":true}', None)),
        (Failed(BOOM), (Status.FAILED, None, BOOM)),
        (Crashed(BOOM), (Status.CRASHED, None, BOOM)),
        (TimedOut(BOOM), (Status.TIMED_OUT, None, BOOM)),
        (Canceled(), (Status.CANCELED, None, None)),
        (Canceled(BOOM), (Status.CANCELED, None, BOOM)),
    ],
)
async def test_an_outcome_is_recorded(store, clock, outcome, expected):
    """Output or error survive, with who did it, when, and how many records were lost."""
    run = await claimed(store)
    clock.now += 7

    assert await store.finish(run.id, 1, "w1", outcome, records_lost=3)

    after = await reload(store, run)
    assert expected == (after.status, after.output, after.error)
    assert (clock.now, 3, "w1", 42) == (
        after.finished_at,
        after.records_lost,
        after.owner,
        after.pid,
    )
    assert after.status.is_finished
    assert await store.unfinished() == 0
    assert (await store.counts())[expected[0]] == 1


async def test_an_outcome_is_recorded_once(store):
    """The second outcome of the same attempt changes nothing."""
    run = await claimed(store)

    first = store.finish(run.id, 1, "w1", Completed(b"1"))
    second = store.finish(run.id, 1, "w1", Failed(BOOM), records_lost=9)

    assert (await first, await second) == (True, False)
    after = await reload(store, run)
    assert (
        after.status,
        after.output,
        after.error,
        after.records_lost,
    ) == (Status.COMPLETED, b"1", None, 0)


async def test_success_forgets_the_error_of_an_earlier_attempt(store):
    """A completed run has no error."""
    run = await claimed(store)
    await store.retry(run.id, 1, "w1", run_at=0, error=BOOM)
    await claim(store)

    await store.finish(run.id, 2, "w1", Completed())

    assert (await reload(store, run)).error is None


async def every_fenced_change(store, run_id: str, attempt: int, owner: str) -> list[bool]:
    """Try all that can be asked about an attempt."""
    return [
        await store.wait(run_id, attempt, owner),
        await store.resume(run_id, attempt, owner),
        await store.retry(run_id, attempt, owner, run_at=0, error=BOOM, crashed=True),
        await store.requeue(run_id, attempt, owner, excused=True, crashed=True),
        await store.finish(run_id, attempt, owner, Completed()),
    ]


@pytest.mark.parametrize("late", [(1, "w1"), (2, "w1"), (1, "w2"), (3, "w2"), (0, "w2")])
async def test_a_late_message_changes_nothing(store, late):
    """Attempt 2 is with w2: a message that names another attempt, or owner, is refused."""
    run = await claimed(store)
    await store.requeue(run.id, 1, "w1", excused=False)
    (now,) = await claim(store, owner="w2")

    answers = await every_fenced_change(store, run.id, *late)

    assert not any(answers)
    assert now == await reload(store, run)


async def test_nobodys_run_takes_no_message(store):
    """The last owner of a queued or finished run has no say, nor has anyone about no run."""
    queued = await claimed(store, owner="w1")
    await store.requeue(queued.id, 1, "w1", excused=True)
    finished = await claimed(store, "b", owner="w1")
    await store.finish(finished.id, 1, "w1", Completed())
    before = [await reload(store, run) for run in (queued, finished)]

    answers = [
        answer
        for run_id in (queued.id, finished.id, "run_nope")
        for answer in await every_fenced_change(store, run_id, 1, "w1")
    ]

    assert not any(answers)
    assert before == [await reload(store, run) for run in (queued, finished)]


async def test_a_run_waits_and_resumes(store):
    """Saying it twice does no harm, and a waiting run can finish."""
    run = await claimed(store)

    assert await store.wait(run.id, 1, "w1")
    assert await store.wait(run.id, 1, "w1")
    assert await status(store, run) is Status.WAITING
    assert await claim(store) == []
    assert await store.resume(run.id, 1, "w1")
    assert await status(store, run) is Status.EXECUTING
    await store.wait(run.id, 1, "w1")
    assert await store.finish(run.id, 1, "w1", Completed())


async def test_a_retry_comes_back_at_its_time(store, clock):
    """The failed attempt counts, its error is kept, and the next one starts from `run_at` on."""
    run = await claimed(store)
    at = clock.now + 2.5

    assert await store.retry(run.id, 1, "w1", run_at=at, error=BOOM)

    after = await reload(store, run)
    assert (Status.RETRYING, at, BOOM, None) == (
        after.status,
        after.run_at,
        after.error,
        after.owner,
    )
    assert (after.attempts_used, after.crashes) == (1, 0)
    assert await claim(store, now=at - 0.001) == []
    (again,) = await claim(store, now=at, owner="w2")
    assert (again.attempt, again.attempts_used, again.owner, again.error) == (2, 2, "w2", BOOM)


async def test_a_crash_can_be_retried_later(store):
    """A retry after a crash counts the attempt and the crash."""
    run = await claimed(store)

    await store.retry(run.id, 1, "w1", run_at=5, error=BOOM, crashed=True)

    after = await reload(store, run)
    assert (after.attempts_used, after.crashes) == (1, 1)


async def test_the_last_crash_counts_too(store):
    """R8: a run that is CRASHED says how often it took a worker down, the last time included."""
    run = await claimed(store)
    await store.requeue(run.id, 1, "w1", excused=False, crashed=True)
    await claim(store, owner="w2")

    assert await store.finish(run.id, 2, "w2", Crashed(error=BOOM))

    after = await reload(store, run)
    assert (after.attempts_used, after.crashes) == (2, 2)


@pytest.mark.parametrize(
    ("excused", "crashed", "expected"),
    [(True, False, (0, 0)), (False, True, (1, 1)), (False, False, (1, 0))],
)
async def test_a_requeue_says_what_counts(store, excused, crashed, expected):
    """Drain and reload excuse the attempt; a crash is counted when it is blamed."""
    run = await claimed(store)

    assert await store.requeue(run.id, 1, "w1", excused=excused, crashed=crashed)

    after = await reload(store, run)
    assert (after.status, after.owner) == (Status.QUEUED, None)
    assert expected == (after.attempts_used, after.crashes)


async def test_a_requeued_run_goes_first(store, clock):
    """It keeps its place: it was ready before everything accepted since."""
    run = await claimed(store)
    clock.now += 1
    (later,) = await accept(store, "a")
    await store.requeue(run.id, 1, "w1", excused=True)

    assert [run.id, later] == [each.id for each in await claim(store)]


async def test_a_dead_workers_runs_are_released(store):
    """All that it had goes back; the blamed run counts attempt and crash, the others neither."""
    blamed, waiting, neighbour, done = [await claimed(store, task) for task in "abcd"]
    other = await claimed(store, "e", owner="w2")
    await store.wait(waiting.id, 1, "w1")
    await store.finish(done.id, 1, "w1", Completed())

    released = await store.release("w1", blamed=blamed.id)

    assert [
        (blamed.id, Status.QUEUED, None, 1, 1),
        (waiting.id, Status.QUEUED, None, 0, 0),
        (neighbour.id, Status.QUEUED, None, 0, 0),
    ] == [(run.id, run.status, run.owner, run.attempts_used, run.crashes) for run in released]
    assert released == await store.get_many([blamed.id, waiting.id, neighbour.id])
    assert other == await reload(store, other)
    assert await status(store, done) is Status.COMPLETED
    assert await store.release("w1") == []


async def test_without_blame_all_are_excused(store):
    """A worker that died between several runs, or in a drain, blames none of them."""
    runs = [await claimed(store, task) for task in "ab"]

    released = await store.release("w1")

    assert [(run.id, 1, 0, 0) for run in runs] == [
        (run.id, run.attempt, run.attempts_used, run.crashes) for run in released
    ]


async def test_an_outcome_before_the_release_stands(store):
    """Changes apply in the order of the calls: what was finished first is not released."""
    blamed, neighbour = [await claimed(store, task) for task in "ab"]

    finished = store.finish(blamed.id, 1, "w1", Crashed(BOOM))
    released = store.release("w1")

    assert await finished
    assert [neighbour.id] == [run.id for run in await released]
    assert await status(store, blamed) is Status.CRASHED


async def test_a_new_supervisor_requeues_all(store, clock):
    """What any worker had starts again, excused; what waits for its time goes on waiting for it."""
    runs = [await claimed(store, "a", owner="w1"), await claimed(store, "b", owner="w2")]
    await store.wait(runs[1].id, 1, "w2")
    retrying = await claimed(store, "c")
    await store.retry(retrying.id, 1, "w1", run_at=clock.now + 9, error=BOOM)
    (delayed,) = await store.accept([NewRun(task="d", run_at=clock.now + 9)])
    untouched = await store.get_many([retrying.id, delayed.id])

    requeued = await store.requeue_unfinished()

    assert [(run.id, Status.QUEUED, None, 0, 0) for run in runs] == [
        (run.id, run.status, run.owner, run.attempts_used, run.crashes) for run in requeued
    ]
    assert untouched == await store.get_many([retrying.id, delayed.id])
    assert await store.requeue_unfinished() == []


async def test_an_excused_attempt_is_still_a_number_of_its_own(store):
    """Numbers never come twice: the fence of the dead attempt does not fit the new one."""
    run = await claimed(store)
    await store.requeue_unfinished()
    (again,) = await claim(store)

    assert (again.attempt, again.attempts_used) == (2, 1)
    assert not await store.finish(run.id, run.attempt, "w1", Completed())
