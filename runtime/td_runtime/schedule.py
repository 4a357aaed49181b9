"""When a scheduled task is due: ticks in, ticks out, no clock.

Ticks are whole seconds of wall-clock time. A tick is due once, whatever the clock does: what counts
is the last tick that was dealt with, which never moves back. A clock set back repeats nothing; one
set forward, a host that slept, or a supervisor that was down leave *missed* ticks behind.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

__all__ = ["CronSimError", "Due", "MissedTicks", "Schedule"]

MissedTicks = Literal["run_once", "skip"]

GRACE: Final = 60.0
"""Seconds after its time that a tick is late and not missed: a busy host is no reason to skip."""

_MOST_COUNTED: Final = 1000
"""Missed ticks are counted up to here: nobody needs the minutes of a year."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """What a look at the clock found."""

    ticks: tuple[float, ...] = ()
    """Epoch seconds, ascending: each gets a run."""
    missed: int = 0
    """How many of the others are given up; 1000 stands for that many or more."""
    last: float | None = None
    """The newest tick that is dealt with when these are; None when nothing was due."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A cron pattern in a time zone.

    The pattern has five fields and Debian cron's meaning, daylight saving included: a job at a
    fixed hour that is skipped runs right after the jump, and once in an hour that comes twice.

    Args:
        pattern: Five fields: minute, hour, day of month, month, day of week.
        timezone: An IANA name.
        missed: "run_once" runs the newest of the ticks that were missed, "skip" none.

    Raises:
        CronSimError: The pattern does not parse.
        ZoneInfoNotFoundError: There is no such zone.
    """

    pattern: str
    timezone: str = "UTC"
    missed: MissedTicks = "run_once"

    def __post_init__(self) -> None:
        if len(self.pattern.split()) != 5:  # cronsim takes seconds, too, and upstream does not
            raise CronSimError("five fields: minute, hour, day of month, month, day of week")
        self._ticks(datetime.now(UTC))

    def next_ticks(self, after: float, count: int = 1) -> list[float]:
        """Return the first ticks after the epoch second `after`; fewer when there are no more."""
        return list(itertools.islice(self._after(after), count))

    def ticks_as(self, other: Schedule) -> bool:
        """Say whether it has the ticks of *other*, whatever becomes of those that are missed."""
        return (self.pattern, self.timezone) == (other.pattern, other.timezone)

    def due(self, *, after: float, now: float) -> Due:
        """Return what is due at `now` when all ticks up to `after` are dealt with.

        Args:
            after: The last tick that was dealt with, or when the schedule began; epoch seconds.
            now: Epoch seconds.
        """
        on_time = tuple(itertools.takewhile(now.__ge__, self._after(max(after, now - GRACE))))
        late = itertools.takewhile((now - GRACE).__ge__, self._after(after))
        missed = sum(1 for _ in itertools.islice(late, _MOST_COUNTED))
        if missed and not on_time and self.missed == "run_once":
            newest = self._newest(now)
            return Due(ticks=(newest,), missed=missed - 1, last=newest)
        if on_time:
            return Due(ticks=on_time, missed=missed, last=on_time[-1])

        return Due(missed=missed, last=self._newest(now) if missed else None)

    def _after(self, moment: float) -> Iterator[float]:
        start = datetime.fromtimestamp(moment, self._zone())
        for tick in self._ticks(start):
            if (at := tick.timestamp()) > moment:
                yield at

    def _newest(self, now: float) -> float:
        """Return the newest tick that is not after `now`; there must be one."""
        start = datetime.fromtimestamp(int(now) + 1, self._zone())

        return next(CronSim(self.pattern, start, reverse=True)).timestamp()

    def _ticks(self, start: datetime) -> CronSim:
        return CronSim(self.pattern, start.astimezone(self._zone()))

    def _zone(self) -> ZoneInfo:
        return ZoneInfo(self.timezone)
