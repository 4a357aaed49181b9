"""The rules of the run store that hold whatever the code looks like, one test a rule at least.

R1 and R5 under SIGKILL and power loss are in tests/integration/store; R3 and R7 are of processes.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing

from td_runtime.store import Completed, Failed, NewRun, RunError, Status
from tests.unit.runtime.store.helpers import BOOM, claim, claimed, places, queues, reload, status


async def test_r1_nobody_is_told_of_an_accept_before_it_is_committed(store, path):
    """R1: while the answer is out, another connection does not see the run; with it, it does."""
    future = store.accept([NewRun(task="a")])
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("SELECT count(*) FROM runs").fetchone() == (0,)
        assert not future.done()
        await future
        assert other.execute("SELECT count(*) FROM runs").fetchone() == (1,)


async def test_r2_the_runs_of_a_dead_worker_start_again_at_once(store, clock):
    """R2: one change requeues them all; the very next hand-out has them, at the same moment."""
    run = await claimed(store)

    released = store.release("w1")
    again = store.claim(places(1, "w2"), queues=queues(), now=clock.now)

    assert [each.id for each in await released] == [run.id]
    assert [each.id for each in await again] == [run.id]


async def test_r4_a_drained_run_is_requeued_unblamed(store):
    """R4, R8: neither attempt nor crash is counted, and it is back at its place."""
    run = await claimed(store)

    assert await store.requeue(run.id, 1, "w1", excused=True) is Status.QUEUED

    after = await reload(store, run)
    assert (after.attempts_used, after.crashes, after.run_at) == (0, 0, run.run_at)


async def test_r5_one_outcome_is_recorded(store):
    """R5: of two workers that both believe to have the run, the one that has it is heard."""
    run = await claimed(store)
    await store.release("w1")
    (now,) = await claim(store, owner="w2")

    late = await store.finish(run.id, 1, "w1", Failed(BOOM))
    current = await store.finish(now.id, 2, "w2", Completed(b"2"))
    twice = await store.finish(now.id, 2, "w2", Completed(b"3"))

    assert (late, current, twice) == (False, True, False)
    assert (await reload(store, run)).output == b"2"


async def test_r6_an_error_survives_as_it_was(store):
    """R6: type, message, traceback, whether it could be retried, and its code."""
    run = await claimed(store)
    error = RunError(
        type="KeyError", message="'ü'", traceback="Traceback\n ...", retryable=False, code="X"
    )

    await store.finish(run.id, 1, "w1", Failed(error))

    assert (await reload(store, run)).error == error


async def test_r8_attempts_count_at_hand_out(store):
    """R8: the attempt is in the store before any worker can have begun it."""
    run = await claimed(store)

    assert (await reload(store, run)).attempt == 1
    await store.release("w1", blamed=run.id)
    after = await reload(store, run)
    assert (after.attempts_used, after.crashes) == (1, 1)


async def test_r9_a_parent_that_starts_over_finds_its_child(store):
    """R9: the same key of the same call gives the same child, done or not; no second one starts."""
    parent = await claimed(store)
    call = NewRun(task="b", parent_id=parent.id, idempotency_key=f"{parent.id}:0:0")
    (child,) = await store.accept([call])
    await store.wait(parent.id, 1, "w1")
    assert await status(store, parent) is Status.WAITING
    (run,) = await claim(store, b=None)
    await store.finish(run.id, 1, "w1", Completed())
    await store.release("w1")
    await claim(store)

    (again,) = await store.accept([call])

    assert (again.id, again.created) == (child.id, False)
