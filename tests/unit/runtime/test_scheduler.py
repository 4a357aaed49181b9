"""Scheduled runs: when they are accepted, under which key, and what survives a restart."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from td_runtime.admission import TriggerError
from td_runtime.schedule import Schedule
from td_runtime.scheduler import Scheduler, Tick
from td_runtime.store import NewRun, RunStore, StoreFullError, open_store

HOURLY = Schedule(pattern="0 * * * *")
MIDNIGHT = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
HOUR = 3600.0


class Clock:
    """A wall clock that a test sets."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Host:
    """One run store, and the schedulers of the supervisors that come and go."""

    def __init__(self, store: RunStore) -> None:
        self.store = store
        self.clock = Clock(MIDNIGHT + 10)
        self.room = True
        self.disk = True

    async def accept(self, tick: Tick) -> None:
        if not self.room:
            raise TriggerError("the queue is full")
        if not self.disk:
            raise StoreFullError("no space left")
        new = NewRun(task=tick.task, payload=tick.payload, idempotency_key=tick.key)
        await self.store.accept([new])

    def scheduler(self, schedules: Mapping[str, Schedule] | None = None) -> Scheduler:
        return Scheduler(
            {"report": HOURLY} if schedules is None else schedules,
            records=self.store,
            accept=self.accept,
            clock=self.clock,
        )

    async def look(self, scheduler: Scheduler, at: float) -> float:
        self.clock.now = at
        return await scheduler.look()


class FullRecords:
    """The store of a host, on a disk that a test fills."""

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self.disk = False

    async def last_ticks(self) -> dict[str, float]:
        return await self._store.last_ticks()

    async def record_tick(self, task: str, at: float) -> None:
        await self._store.record_tick(task, at)

    async def forget_ticks(self, tasks: Collection[str]) -> None:
        if not self.disk:
            raise StoreFullError("no space left")
        await self._store.forget_ticks(tasks)


@pytest.fixture(name="host")
async def _host(tmp_path: Path) -> AsyncIterator[Host]:
    async with open_store(tmp_path / "runs.db") as store:
        yield Host(store)


async def count(host: Host) -> int:
    return sum((await host.store.counts()).values())


async def test_a_tick_is_one_run_however_often_one_looks(host: Host) -> None:
    """The first look begins the schedule, the tick's gets a run, later looks get none."""
    scheduler = host.scheduler()
    await host.look(scheduler, MIDNIGHT + 10)
    assert await count(host) == 0

    await host.look(scheduler, MIDNIGHT + HOUR)
    await host.look(scheduler, MIDNIGHT + HOUR)
    await host.look(scheduler, MIDNIGHT + HOUR + 5)

    assert await count(host) == 1


async def test_a_clock_set_back_doubles_nothing(host: Host) -> None:
    """An hour that comes again, by somebody's hand, has had its tick."""
    scheduler = host.scheduler()
    for at in (10.0, HOUR, 60.0, HOUR, HOUR + 1):
        await host.look(scheduler, MIDNIGHT + at)

    assert await count(host) == 1


async def test_a_supervisor_that_died_between_run_and_record_doubles_nothing(host: Host) -> None:
    """The successor finds the tick due again, asks for the same key and gets the same run."""
    first = host.scheduler()
    await host.look(first, MIDNIGHT + 10)
    begun = await host.store.last_ticks()
    await host.look(first, MIDNIGHT + HOUR)

    successor = host.scheduler()
    successor._last = begun  # as if the record of the tick had been lost
    await host.look(successor, MIDNIGHT + HOUR + 3)

    assert await count(host) == 1


async def test_ticks_of_a_night_without_a_supervisor_run_once(host: Host) -> None:
    """The successor knows how far its predecessor came, and runs the newest tick alone."""
    await host.look(host.scheduler(), MIDNIGHT + 10)

    successor = host.scheduler()
    await successor.load()
    await host.look(successor, MIDNIGHT + 8 * HOUR + 600)

    assert await count(host) == 1
    assert (await host.store.last_ticks())["report"] == MIDNIGHT + 8 * HOUR


async def test_a_schedule_that_was_gone_begins_anew(host: Host) -> None:
    """A reload that brings a schedule back makes up for no tick of the time without it."""
    scheduler = host.scheduler()
    await host.look(scheduler, MIDNIGHT + 10)
    scheduler.reload({})
    await host.look(scheduler, MIDNIGHT + 5 * HOUR)

    scheduler.reload({"report": HOURLY})
    await host.look(scheduler, MIDNIGHT + 5 * HOUR + 600)
    assert await count(host) == 0

    await host.look(scheduler, MIDNIGHT + 6 * HOUR)
    assert await count(host) == 1


async def test_a_schedule_that_was_gone_in_another_life_begins_anew(host: Host) -> None:
    """Removed under one supervisor and back under the next, it makes up for no tick either."""
    await host.look(host.scheduler(), MIDNIGHT + 10)
    without = host.scheduler(schedules={})
    await without.load()
    await host.look(without, MIDNIGHT + 2 * HOUR)
    assert await host.store.last_ticks() == {}

    successor = host.scheduler()
    await successor.load()
    await host.look(successor, MIDNIGHT + 5 * HOUR + 600)
    assert await count(host) == 0

    await host.look(successor, MIDNIGHT + 6 * HOUR)
    assert await count(host) == 1


async def test_a_schedule_that_a_reload_removed_is_forgotten_for_good(host: Host) -> None:
    """A supervisor that starts after the reload finds nothing to make up for."""
    scheduler = host.scheduler()
    await host.look(scheduler, MIDNIGHT + 10)
    scheduler.reload({})
    await host.look(scheduler, MIDNIGHT + 11)

    successor = host.scheduler()
    await successor.load()
    await host.look(successor, MIDNIGHT + 5 * HOUR + 600)

    assert await count(host) == 0


async def test_a_schedule_is_forgotten_once_the_disk_has_room(host: Host) -> None:
    """A full disk delays the forgetting and does not prevent it."""
    scheduler = host.scheduler()
    await host.look(scheduler, MIDNIGHT + 10)
    records = FullRecords(host.store)
    scheduler._records = records
    scheduler.reload({})
    assert 0 < await host.look(scheduler, MIDNIGHT + 11) <= 2
    assert await host.store.last_ticks() != {}

    records.disk = True
    await host.look(scheduler, MIDNIGHT + 13)
    assert await host.store.last_ticks() == {}


async def test_another_pattern_begins_at_the_reload(host: Host) -> None:
    """A reload that changes when a task is due makes up for no tick of the time before it."""
    scheduler = host.scheduler()
    await host.look(scheduler, MIDNIGHT + 10)

    scheduler.reload({"report": Schedule(pattern="5 * * * *")})
    await host.look(scheduler, MIDNIGHT + 600)

    assert await count(host) == 0


async def test_a_reload_without_changes_loses_no_tick(host: Host) -> None:
    """A tick that was not looked at before a reload is due after it."""
    scheduler = host.scheduler()
    await host.look(scheduler, MIDNIGHT + 10)

    scheduler.reload({"report": Schedule(pattern="0 * * * *", missed="skip")})
    await host.look(scheduler, MIDNIGHT + HOUR)

    assert await count(host) == 1


async def test_a_refused_tick_is_tried_again(host: Host) -> None:
    """A full queue delays a tick and does not lose it."""
    scheduler = host.scheduler()
    await host.look(scheduler, MIDNIGHT + 10)
    host.room = False
    delay = await host.look(scheduler, MIDNIGHT + HOUR)
    assert 0 < delay <= 2

    host.room = True
    await host.look(scheduler, MIDNIGHT + HOUR + delay)

    assert await count(host) == 1


async def test_a_tick_survives_a_full_disk(host: Host) -> None:
    """With no room for its run or its record a tick stays due; it is one run when there is room."""
    scheduler = host.scheduler()
    await host.look(scheduler, MIDNIGHT + 10)

    host.disk = False
    assert 0 < await host.look(scheduler, MIDNIGHT + HOUR) <= 2
    assert await count(host) == 0

    host.disk = True
    await host.look(scheduler, MIDNIGHT + HOUR + 2)
    assert await count(host) == 1


async def test_the_next_look_comes_in_time(host: Host) -> None:
    """Never after the next tick, and twice a minute at least, since clocks are set."""
    scheduler = host.scheduler()

    assert await host.look(scheduler, MIDNIGHT + 10) == 30.0
    assert await host.look(scheduler, MIDNIGHT + HOUR - 4) == 4.0


async def test_the_payload_is_upstreams(host: Host) -> None:
    """Type, times and zone as the official SDK gives them to scheduled tasks."""
    ticks: list[Tick] = []

    async def keep(tick: Tick) -> None:
        ticks.append(tick)

    scheduler = Scheduler(
        {"report": Schedule(pattern="0 * * * *", timezone="Europe/Berlin")},
        records=host.store,
        accept=keep,
        clock=host.clock,
    )
    for hour in (0, 1, 2):
        await host.look(scheduler, MIDNIGHT + 10 * (not hour) + hour * HOUR)

    first, second = (msgspec.json.decode(tick.payload) for tick in ticks)
    assert first["lastTimestamp"] is None
    assert second == {
        "type": "DECLARATIVE",
        "scheduleId": "report",
        "timestamp": "2026-01-01T02:00:00.000Z",
        "lastTimestamp": "2026-01-01T01:00:00.000Z",
        "timezone": "Europe/Berlin",
        "upcoming": [f"2026-01-01T0{hour}:00:00.000Z" for hour in range(3, 8)],
    }
    assert ticks[1].key == "schedule/report/2026-01-01T02:00:00.000Z"
