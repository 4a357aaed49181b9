"""What the runtime thread notices about the user loop, and when a worker has done enough."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest
import structlog

from td_worker.clock import AttemptClock
from td_worker.heartbeat import Deadlines, Heartbeat, Late
from td_worker.recycling import Retirement, resident_bytes


@pytest.fixture
def user_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A second loop in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


async def told(logs: list[structlog.typing.EventDict], event: str) -> structlog.typing.EventDict:
    """Return the first line of that event, once it is there."""
    while not (found := [line for line in logs if line["event"] == event]):
        await asyncio.sleep(0.005)
    return found[0]


async def test_a_stall_is_told_once_and_its_end(user_loop: asyncio.AbstractEventLoop) -> None:
    """While there are runs; without any the loop is not looked at."""
    busy = True
    freed = threading.Event()
    heartbeat = Heartbeat(
        user_loop,
        is_busy=lambda: busy,
        deadlines=Deadlines(),
        on_late=lambda late: None,
        on_kill=lambda seconds: None,
        stalled_after=0.04,
        kill_after=None,
    )
    with structlog.testing.capture_logs() as logs:
        user_loop.call_soon_threadsafe(freed.wait)
        heartbeat.wake()
        stalled = await told(logs, "worker.stalled")
        await asyncio.sleep(0.1)
        freed.set()
        recovered = await told(logs, "worker.recovered")
        busy = False

    assert stalled["stalled_s"] >= 0.04
    assert recovered["stalled_s"] > stalled["stalled_s"]
    assert [line["event"] for line in logs] == ["worker.stalled", "worker.recovered"]


async def test_late_attempts_are_told_though_the_loop_is_stuck(
    user_loop: asyncio.AbstractEventLoop,
) -> None:
    """Each once; one that has ended in time is not."""
    deadlines = Deadlines()
    late: asyncio.Queue[Late] = asyncio.Queue()
    freed = threading.Event()
    busy = True
    heartbeat = Heartbeat(
        user_loop,
        is_busy=lambda: busy,
        deadlines=deadlines,
        on_late=late.put_nowait,
        on_kill=lambda seconds: None,
        stalled_after=0.02,
        kill_after=None,
    )
    user_loop.call_soon_threadsafe(freed.wait)
    deadlines.set("run_1", 1, 0.01, "TIMED_OUT")
    deadlines.set("run_2", 1, 0.01, "CANCELED")
    deadlines.clear("run_2", 1)
    heartbeat.wake()

    assert await late.get() == Late("run_1", 1, "TIMED_OUT")
    freed.set()
    busy = False
    assert late.empty()
    assert deadlines.take_late() == []


def test_the_sooner_of_two_deadlines_counts() -> None:
    """A cancellation comes before the end of max_duration, or after it."""
    deadlines = Deadlines()
    deadlines.set("run_1", 1, 3600, "TIMED_OUT")
    deadlines.set("run_1", 1, 0, "CANCELED")
    deadlines.set("run_1", 1, 60, "TIMED_OUT")

    assert deadlines.take_late() == [Late("run_1", 1, "CANCELED")]


async def test_the_clock_stands_still_in_waits() -> None:
    """Nested waits count once, and the time that is left goes on afterwards."""
    over = asyncio.Event()
    clock = AttemptClock(0.1, over.set)
    clock.start()
    clock.pause()
    clock.pause()
    await asyncio.sleep(0.15)
    clock.resume()
    await asyncio.sleep(0.15)
    assert not over.is_set()

    began = time.monotonic()
    clock.resume()
    await over.wait()
    assert time.monotonic() - began >= 0.05


def test_a_worker_leaves_once_after_its_runs() -> None:
    """Up to a tenth before the limit, and it says so once."""
    left: list[tuple[str, int]] = []
    retirement = Retirement(
        lambda reason, runs, memory: left.append((reason, runs)),
        max_runs=100,
        max_memory=None,
        jitter=lambda: 0.5,
    )
    for _ in range(200):
        retirement.note_run()

    assert left == [("runs", 95)]


def test_a_worker_leaves_when_it_has_grown() -> None:
    """Above the limit, as it is after a run."""
    sizes = iter([50, 90, 101, 101, 101])
    left: list[tuple[str, int, int]] = []
    retirement = Retirement(
        lambda *facts: left.append(facts),
        max_runs=None,
        max_memory=100,
        memory=lambda: next(sizes),
        jitter=lambda: 0.0,
    )
    for _ in range(4):
        retirement.note_run()

    assert left == [("memory", 3, 101)]


def test_this_process_has_memory() -> None:
    """The kernel is asked, in bytes."""
    assert 1_000_000 < resident_bytes() < 1 << 40
