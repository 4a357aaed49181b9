# ruff: noqa: ISC004  the sentences are longer than a line
"""Delays, expiries, limits, cancellation and a full disk, as the dispatcher handles them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from td_runtime import hand_out
from td_runtime.admission import TriggerError, check_items
from td_runtime.config import LimitsConfig, TaskConfig
from td_runtime.queues import queue_limits
from td_runtime.store import QueueLimits, Status, StoreFullError, open_store
from td_worker.messages import (
    CancelRun,
    Outcomes,
    RunError,
    RunOutcome,
    Trigger,
    TriggerItem,
    TriggerRefused,
)
from tests.unit.runtime.test_dispatch import Runtime


@pytest.fixture
async def runtime(tmp_path: Path) -> AsyncIterator[Runtime]:
    async with open_store(tmp_path / "runs.db") as store:
        runtime = Runtime(store)
        running = asyncio.create_task(runtime.dispatcher.run(runtime.pool))
        yield runtime
        runtime.dispatcher.stop()
        await running
        await runtime.dispatcher.close()


async def accept(runtime: Runtime, **facts: Any) -> str:
    (accepted,) = await runtime.dispatcher.accept([TriggerItem(task="a", **facts)])
    return str(accepted.id)


async def test_a_delayed_run_starts_when_it_is_due(runtime: Runtime) -> None:
    """Not handed out at once, but by itself at its time, with an event when it is queued."""
    with structlog.testing.capture_logs() as logs:
        at = time.time() + 0.2
        run_id = await accept(runtime, run_at=at)
        run = await runtime.one.assigned.get()

    assert run.id == run_id
    assert time.time() >= at
    assert "run.queued" in [each["event"] for each in logs]


async def test_a_run_expires_while_every_place_is_taken(runtime: Runtime) -> None:
    """Nobody hands anything out, and yet its time is over; who waits for it hears so."""
    for _ in range(10):
        await accept(runtime)
        await runtime.one.assigned.get()
    run_id = await accept(runtime, ttl=0.1)

    with structlog.testing.capture_logs() as logs:
        (run,) = await runtime.dispatcher.finished([run_id])

    assert run.status is Status.EXPIRED
    assert "run.expired" in [each["event"] for each in logs]


async def test_a_canceled_run_ends_for_those_who_wait(runtime: Runtime) -> None:
    """A delayed one at once, and its place in the queue is free for another."""
    run_id = await accept(runtime, run_at=time.time() + 1000)
    waiting = asyncio.create_task(runtime.dispatcher.finished([run_id]))
    await asyncio.sleep(0)

    await runtime.dispatcher.cancel([run_id], by="ann")

    (run,) = await waiting
    assert (run.status, run.canceled_by) == (Status.CANCELED, "ann")
    assert runtime.dispatcher._hand_out.backlog == 0


async def test_a_run_to_be_canceled_is_not_retried(runtime: Runtime) -> None:
    """Its attempt fails after it was told to stop: CANCELED, whatever its retry policy says."""
    run_id = await accept(runtime)
    await runtime.one.assigned.get()
    await runtime.dispatcher.cancel([run_id])
    assert runtime.one.said == [CancelRun(run_id=run_id, attempt=1)]
    failed = RunOutcome(
        run_id=run_id,
        attempt=1,
        status="FAILED",
        error=RunError(type="E", message="m"),
        retry_at=time.time(),
    )

    runtime.dispatcher.receive(runtime.one, Outcomes(outcomes=[failed]))

    (run,) = await runtime.dispatcher.finished([run_id])
    assert run.status is Status.CANCELED


async def test_a_full_disk_stops_nothing_but_new_runs(runtime: Runtime) -> None:
    """Triggers are refused, also those of runs; what executes ends, is recorded when there is room,
    and then the next run starts."""  # noqa: D205, D209
    runtime.store._changes._full_pause = 0.02
    first = await accept(runtime)
    await runtime.one.assigned.get()
    connection = runtime.store._connection
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")

    big = b'"' + b"x" * 300_000 + b'"'
    with pytest.raises(StoreFullError):
        await accept(runtime, payload=big)
    item = TriggerItem(task="a", payload=big)
    runtime.dispatcher.receive(
        runtime.one, Trigger(request=1, run_id=first, attempt=1, items=[item])
    )
    done = RunOutcome(run_id=first, attempt=1, status="COMPLETED", output=big)
    runtime.dispatcher.receive(runtime.one, Outcomes(outcomes=[done]))
    waiting = asyncio.create_task(runtime.dispatcher.finished([first]))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    (refused,) = runtime.one.said
    assert isinstance(refused, TriggerRefused)
    assert "no space left" in refused.message

    connection.execute("PRAGMA max_page_count = 1000000")
    (run,) = await waiting
    assert (run.status, run.output) == (Status.COMPLETED, big)
    again = await accept(runtime)
    assert (await runtime.one.assigned.get()).id == again
    assert runtime.failures == []


def task(name: str, **facts: Any) -> TaskConfig:
    return TaskConfig(id=name, entrypoint=f"tasks:{name}", **facts)


def test_queues_have_the_smallest_limit_of_their_tasks() -> None:
    """A task's own queue is there even if it uses another: earlier runs wait in it."""
    found = queue_limits(
        [task("a", queue="q", concurrency=5), task("b", queue="q", concurrency_per_key=2)]
    )

    assert found == {
        "task/a": QueueLimits(concurrency=5),
        "task/b": QueueLimits(per_key=2),
        "q": QueueLimits(concurrency=5, per_key=2),
    }


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"tags": ("x",) * 11}, "11 tags for task 'a'; limits.tags = 10"),
        ({"tags": ("x" * 129,)}, "a tag for task 'a' has 129 characters; it needs at least one, "
         "limits.tag_length = 128"),
        ({"tags": ("",)}, "a tag for task 'a' has 0 characters; it needs at least one, "
         "limits.tag_length = 128"),
        ({"metadata": b" " * 262_145}, "the metadata for task 'a' is 262145 bytes; "
         "limits.metadata = 262144"),
        ({"idempotency_key": "k" * 2049}, "the idempotency_key for task 'a' has 2049 characters; "
         "it needs at least one, limits.key_length = 2048"),
        ({"concurrency_key": ""}, "the concurrency_key for task 'a' has 0 characters; "
         "it needs at least one, limits.key_length = 2048"),
        ({"queue": "task/b"}, "there is no queue 'task/b'; did you mean 'task/a'? (known: task/a)"),
        ({"ttl": -1.0}, "ttl = -1 for task 'a'; it must be from 0 to 3.1536e+08"),
        ({"run_at": float("nan")}, "the delay of task 'a' ends at nan, in seconds since the epoch; "
         "it must end within 365 days from now"),
        ({"run_at": 31_537_001.0}, "the delay of task 'a' ends at 31537001, in seconds since the "
         "epoch; it must end within 365 days from now"),
        ({"max_duration": 0.0}, "max_duration = 0 for task 'a'; it must be from 0.01 to "
         "3.1536e+08"),
        ({"max_attempts": 0}, "max_attempts = 0 for task 'a'; it must be from 1 to 1000"),
    ],
)  # fmt: skip
def test_what_is_too_large_is_refused_by_name(facts: dict[str, Any], says: str) -> None:
    """Each limit is named by its config key, with what was asked for."""
    item = TriggerItem(task="a", **facts)

    with pytest.raises(TriggerError) as caught:
        check_items([item], tasks={"a": task("a")}, limits=LimitsConfig(), backlog=0, now=1000.0)

    assert str(caught.value) == says


async def test_a_clock_that_is_set_forward_keeps_nobody_waiting(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is due by the new time starts at the next look, not when a timer would end."""
    monkeypatch.setattr(hand_out, "_ALARM", 0.02)
    run_id = await accept(runtime, run_at=time.time() + 3600)
    set_forward = SimpleNamespace(time=lambda: time.time() + 7200, monotonic=time.monotonic)
    monkeypatch.setattr(hand_out, "time", set_forward)

    # The clock of the test's own look is the old one: nothing but the jump has made it due.
    assert (await asyncio.wait_for(runtime.one.assigned.get(), 10)).id == run_id


async def test_a_new_task_waits_for_every_worker_to_know_it(runtime: Runtime) -> None:
    """In a reload: accepted at once, handed out when no worker is left that has the old code."""
    tasks = {name: TaskConfig(id=name, entrypoint=f"tasks:{name}") for name in ("a", "b")}
    runtime.one.tasks = frozenset({"a"})
    runtime.dispatcher.reload(tasks, limits=LimitsConfig(), concurrency=10)
    (new,) = await runtime.dispatcher.accept([TriggerItem(task="b")])
    old = await accept(runtime)

    assert (await asyncio.wait_for(runtime.one.assigned.get(), 10)).id == old
    assert runtime.one.assigned.empty()
    runtime.one.tasks = frozenset(tasks)
    runtime.dispatcher.worker_ready([runtime.one])
    assert (await asyncio.wait_for(runtime.one.assigned.get(), 10)).id == new.id


async def test_new_limits_hold_though_the_disk_was_full(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reload is whole on a full disk: what it lets start is looked for until there is room."""
    monkeypatch.setattr(hand_out, "_FULL_PAUSE", 0.02)
    runtime.dispatcher.reload(
        {"a": task("a", concurrency_per_key=1)}, limits=LimitsConfig(), concurrency=10
    )
    await accept(runtime, concurrency_key="k")
    await runtime.one.assigned.get()
    parked = await accept(runtime, concurrency_key="k")
    reconsider, refusals = runtime.store.reconsider, [StoreFullError("no space left")] * 2

    def fail_first(queues: Any) -> Any:
        if refusals:
            raise refusals.pop()
        return reconsider(queues)

    monkeypatch.setattr(runtime.store, "reconsider", fail_first)
    runtime.dispatcher.reload({"a": task("a")}, limits=LimitsConfig(), concurrency=10)

    assert (await asyncio.wait_for(runtime.one.assigned.get(), 10)).id == parked


async def test_a_run_of_a_removed_task_ends_as_it_was_known(runtime: Runtime) -> None:
    """Its worker dies after the reload: its crash limit is the last one its task had."""
    run_id = await accept(runtime)
    await runtime.one.assigned.get()
    runtime.dispatcher.reload({}, limits=LimitsConfig(), concurrency=10)
    with pytest.raises(TriggerError, match="'a'"):
        await accept(runtime)

    runtime.die(runtime.one)
    await runtime.dispatcher.close()
    run = await runtime.store.get(run_id)
    assert (run.status, run.crashes) == (Status.QUEUED, 1)
    assert runtime.failures == []
