from __future__ import annotations

import sqlite3
from pathlib import Path

from td_runtime.store import NewRun, Place, Status
from td_runtime.store.sqlite_claim import choose
from tests.unit.runtime.store.helpers import (
    BOOM,
    FAR,
    accept,
    claim,
    claimed,
    places,
    queues,
    reload,
)


class Steps:
    """Counts the instructions of SQLite's virtual machine: a measure that no machine changes."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> int:
        self.count += 1
        return 0


def counting(path: Path) -> tuple[Steps, sqlite3.Connection]:
    """Open the store's file beside it, and count what is done on this connection."""
    steps, reader = Steps(), sqlite3.connect(path)
    reader.set_progress_handler(steps, 1)

    return steps, reader


async def test_a_hand_out_counts_an_attempt(store, clock):
    """The run is the owner's, and the record says since when and in which process."""
    (run_id,) = await accept(store, "a")

    (run,) = await store.claim(places(1, pid=4711), queues=queues(a=1), now=clock.now + 3)

    assert run == await reload(store, run_id)
    assert (run.status, run.attempt, run.attempts_used) == (Status.EXECUTING, 1, 1)
    assert ("w1", 4711, clock.now + 3) == (run.owner, run.pid, run.started_at)
    assert {"run_id": run_id, "task": "a", "attempt": 1} == run.log_context()


async def test_nothing_is_handed_out_twice(store):
    """What one worker has, another one does not get."""
    ids = await accept(store, *["a"] * 10)

    first = store.claim(places(6), queues=queues(), now=2e9)
    second = store.claim(places(6, "w2"), queues=queues(), now=2e9)

    assert ids == [run.id for run in await first + await second]
    assert await claim(store) == []


async def test_the_longest_ready_goes_first(store, clock):
    """Over all tasks, by the time they became ready, then by acceptance."""
    first = await accept(store, "a", "b", "c", "b", "a")
    clock.now += 1
    second = await accept(store, "c", "a")

    runs = await claim(store, a=10, b=10, c=10)

    assert first + second == [run.id for run in runs]


async def test_capacity_and_limits_hold(store):
    """No more than fit into the worker, and of each task no more than it may start."""
    ids = await accept(store, "a", "a", "a", "b", "b", "c")

    assert [ids[0], ids[3], ids[4]] == [run.id for run in await claim(store, 3, a=1, b=5, c=1)]
    assert await claim(store, 0, a=5) == []
    assert await claim(store, 5, a=0, b=-1) == []
    assert [ids[1], ids[2], ids[5]] == [run.id for run in await claim(store, a=5, b=5, c=5)]


async def test_runs_are_spread_over_places(store):
    """Each place gets one run, in the order of the places; those left over stay empty."""
    ids = await accept(store, "a", "a", "b")
    rooms = [Place("w1", 1), Place("w2", 2), Place("w1", 1), Place("w3", 3)]

    runs = await store.claim(rooms, queues=queues(a=5, b=5), now=FAR)

    assert [(ids[0], "w1", 1), (ids[1], "w2", 2), (ids[2], "w1", 1)] == [
        (run.id, run.owner, run.pid) for run in runs
    ]
    assert await store.claim([], queues=queues(a=5), now=FAR) == []


async def test_runs_that_are_held_back_stay(store):
    """A hand-out passes over them, to as many others as it would have given."""
    ids = await accept(store, "a", "a", "a", "b", "a")

    runs = await store.claim(places(4), queues=queues(a=2, b=5), now=FAR, hold=[ids[0], ids[3]])

    assert ids[1:3] == [run.id for run in runs]
    assert [ids[0], ids[3], ids[4]] == [run.id for run in await claim(store, a=5, b=5)]


async def test_runs_can_be_asked_for_by_name(store, clock):
    """Only those that are ready, the longest ready first, within the limits."""
    ids = await accept(store, "a", "a", "b", "a", "c")
    (later,) = await store.accept([NewRun(task="a", run_at=clock.now + 60)])
    wanted = [later.id, ids[4], ids[3], ids[1], ids[2], "run_unknown"]

    runs = await store.claim(places(9), queues=queues(a=1, b=9), now=clock.now, only=wanted)
    again = await store.claim(places(1), queues=queues(a=9, c=9), now=clock.now, only=wanted)

    assert ids[1:3] == [run.id for run in runs]
    assert [ids[3]] == [run.id for run in again]
    assert await store.claim(places(9), queues=queues(a=9), now=clock.now, only=[]) == []


async def test_a_task_that_is_not_named_stays(store):
    """A run whose task is not registered any more is kept until it is again."""
    (run_id,) = await accept(store, "gone")

    assert await claim(store, a=10) == []
    assert [run_id] == [run.id for run in await claim(store, gone=1)]


async def test_a_queue_behind_a_full_task_is_not_searched(store, path):
    """With 20,000 runs of a task at its limit in front, a hand-out reads just the others."""
    for _ in range(20):
        await store.accept([NewRun(task="full")] * 1000)
    ids = await accept(store, "a", "b")
    steps, reader = counting(path)

    chosen = choose(reader, queues(full=0, a=64, b=64), 64).taken

    reader.close()
    assert len(chosen) == 2
    assert steps.count < 300
    assert ids == [run.id for run in await claim(store, full=0, a=64, b=64)]


async def test_a_batch_reads_no_more_than_it_takes(store, path):
    """A hand-out of 10 from a queue of 5,000 does not read the other 4,990."""
    for _ in range(5):
        await store.accept([NewRun(task="a")] * 1000)
    steps, reader = counting(path)

    chosen = choose(reader, queues(a=10), 10).taken

    reader.close()
    assert list(range(1, 11)) == chosen
    assert steps.count < 300


async def test_the_next_time_is_the_earliest_one(store, clock):
    """Delays, retries and expiries alike; a run that waits for a place makes nobody spin."""
    run = await claimed(store)
    now = clock.now
    await store.accept([NewRun(task="a", run_at=now + 20), NewRun(task="a", run_at=now + 5)])
    await store.retry(run.id, 1, "w1", run_at=now + 10, error=BOOM)
    await store.accept([NewRun(task="a", ttl=12)])
    await accept(store, "a")

    times: list[float | None] = []
    while (due := await store.next_due_at()) is not None:
        times.append(due - now)
        await store.pass_time(due)

    assert times == [5, 10, 12, 20]
