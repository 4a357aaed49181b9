"""Starts the runs of scheduled tasks when they are due. One a data folder: in its supervisor.

A tick is dealt with in two steps: its run is accepted under a key that names the tick, then the
tick is recorded. Whatever dies in between, the next supervisor finds the tick due again, asks for
the same key and gets the run that is there: no tick is lost, and none runs twice.

Where a task has no schedule any more, its record is deleted: should it have one again, under this
supervisor or a later one, the ticks of the time without are nobody's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from datetime import UTC, datetime
from typing import Final, Protocol

import msgspec
import structlog

from td_runtime.admission import TriggerError
from td_runtime.schedule import Schedule
from td_runtime.store import StoreFullError

__all__ = ["Scheduler", "Tick", "TickRecords"]

log = structlog.get_logger()

_LONGEST_SLEEP: Final = 30.0
"""Seconds between two looks at the wall clock. Loops wait by the monotonic one, which does not tell
when somebody sets the other, or when the host was asleep."""

_RETRY_AFTER: Final = 2.0
"""Seconds until a tick whose run was refused is tried again: the queue may have room by then."""


class Tick(msgspec.Struct, frozen=True, kw_only=True):
    """The run that a tick asks for."""

    task: str
    key: str
    """Unique to this tick of this task; the run's idempotency key."""
    payload: bytes
    """JSON, as upstream gives it to scheduled tasks."""


class TickRecords(Protocol):
    """Where it is kept which ticks are dealt with."""

    async def last_ticks(self) -> dict[str, float]:
        """Return the newest tick dealt with by task id, epoch seconds."""
        ...

    def record_tick(self, task: str, at: float) -> Awaitable[None]:
        """Keep that every tick of *task* up to *at* is dealt with."""
        ...

    def forget_ticks(self, tasks: Collection[str]) -> Awaitable[None]:
        """Delete the records of *tasks*."""
        ...


class Scheduler:
    """The schedules of one supervisor. All methods belong to its loop.

    Args:
        schedules: By task id.
        records: Where ticks are recorded.
        accept: Has the run of a tick accepted; raises `TriggerError` when there is no room.
        clock: Wall-clock seconds.
    """

    def __init__(
        self,
        schedules: Mapping[str, Schedule],
        *,
        records: TickRecords,
        accept: Callable[[Tick], Awaitable[object]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._schedules = dict(schedules)
        self._records = records
        self._accept = accept
        self._clock = clock
        self._last: dict[str, float] = {}
        self._beginning: set[str] = set()
        """Tasks that a reload gave a schedule, or another: the ticks before it are not theirs."""
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Start runs when they are due, until cancelled."""
        await self.load()
        while True:
            self._changed.clear()
            delay = await self.look()
            await self._sleep(delay)

    async def load(self) -> None:
        """Read how far the supervisors before this one came."""
        self._last = await self._records.last_ticks()

    def reload(self, schedules: Mapping[str, Schedule]) -> None:
        """Go on with other schedules; a task that is new to having one, or this one, begins now."""
        self._beginning |= {
            task
            for task, schedule in schedules.items()
            if (before := self._schedules.get(task)) is None or not schedule.ticks_as(before)
        }
        self._schedules = dict(schedules)
        self._changed.set()

    async def look(self) -> float:
        """Deal with everything that is due now; return the seconds until the next look."""
        delay = _LONGEST_SLEEP
        try:
            await self._forget_gone()
            for task in list(self._schedules):
                # A reload while another one was dealt with may have removed it.
                if (schedule := self._schedules.get(task)) is not None:
                    delay = min(delay, await self._look_at(task, schedule))
        except StoreFullError:  # the tick stays due, and the store has said why
            return _RETRY_AFTER

        return max(0.0, delay)

    async def _forget_gone(self) -> None:
        if gone := self._last.keys() - self._schedules.keys():
            await self._records.forget_ticks(gone)
            for task in gone:
                del self._last[task]

    async def _look_at(self, task: str, schedule: Schedule) -> float:
        now = self._clock()
        if task not in self._last or task in self._beginning:
            await self._record(task, _beginning(now))
            self._beginning.discard(task)
        due = schedule.due(after=self._last[task], now=now)
        if due.missed:
            log.warning("schedule.ticks_missed", task=task, count=due.missed)
        for at in due.ticks:
            if not await self._fire(task, schedule, at):
                return _RETRY_AFTER
        if due.last is not None:
            await self._record(task, due.last)
        upcoming = schedule.next_ticks(max(self._last[task], now))

        return upcoming[0] - self._clock() if upcoming else _LONGEST_SLEEP

    async def _fire(self, task: str, schedule: Schedule, at: float) -> bool:
        last = self._last[task]
        tick = make_tick(task, schedule, at, last=last if last.is_integer() else None)
        try:
            await self._accept(tick)
        except TriggerError as error:
            log.error("schedule.tick_refused", task=task, error_message=str(error))
            return False
        log.info("schedule.ticked", task=task, due_at=_iso(at))
        await self._record(task, at)

        return True

    async def _record(self, task: str, at: float) -> None:
        await self._records.record_tick(task, at)
        self._last[task] = at

    async def _sleep(self, delay: float) -> None:
        try:
            await asyncio.wait_for(self._changed.wait(), delay)
        except TimeoutError:
            return


def make_tick(task: str, schedule: Schedule, at: float, *, last: float | None) -> Tick:
    """Return what the tick of *task* at *at* asks for; *last* is the tick before it.

    The payload is upstream's (`trigger-protocol` §8.2): type, timestamp, lastTimestamp, timezone,
    scheduleId, and the next five ticks.
    """
    payload = {
        "type": "DECLARATIVE",
        "scheduleId": task,
        "timestamp": _iso(at),
        "lastTimestamp": None if last is None else _iso(last),
        "timezone": schedule.timezone,
        "upcoming": [_iso(tick) for tick in schedule.next_ticks(at, 5)],
    }

    return Tick(task=task, key=f"schedule/{task}/{_iso(at)}", payload=msgspec.json.encode(payload))


def _beginning(now: float) -> float:
    """Return when a schedule begins that is seen first: half a second, so that it is no tick."""
    return int(now) + 0.5


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"
