"""When scheduled tasks are due."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import pytest

from td_runtime.schedule import CronSimError, Due, Schedule

BERLIN = "Europe/Berlin"


def at(text: str, zone: str = "UTC") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


def local(ticks: list[float]) -> list[str]:
    return [datetime.fromtimestamp(tick, ZoneInfo(BERLIN)).isoformat()[:16] for tick in ticks]


def test_a_tick_is_due_at_its_second() -> None:
    """Nothing is due a moment before the tick, and the tick itself is at its time."""
    schedule = Schedule(pattern="*/5 * * * *")
    midnight, five_past = at("2026-01-01T00:00"), at("2026-01-01T00:05")

    assert schedule.due(after=midnight, now=five_past - 0.001) == Due()
    assert schedule.due(after=midnight, now=five_past) == Due(ticks=(five_past,), last=five_past)


def test_no_tick_is_due_twice() -> None:
    """What was dealt with is not due again, at the same moment or with the clock set back."""
    schedule = Schedule(pattern="*/5 * * * *")
    five_past = at("2026-01-01T00:05")

    assert schedule.due(after=five_past, now=five_past) == Due()
    assert schedule.due(after=five_past, now=five_past - 3600) == Due()


def test_a_late_look_finds_each_tick() -> None:
    """Ticks of the last minute are late and not missed: every one gets its run."""
    schedule = Schedule(pattern="* * * * *", missed="skip")
    start = at("2026-01-01T00:00")

    assert schedule.due(after=start, now=start + 110).ticks == (start + 60,)
    assert schedule.due(after=start + 0.5, now=start + 119.9).ticks == (start + 60,)
    assert schedule.due(after=start, now=start + 120).ticks == (start + 120,)
    assert schedule.due(after=start, now=start + 120).missed == 1


@pytest.mark.parametrize(("missed", "runs"), [("run_once", 1), ("skip", 0)])
def test_missed_ticks_run_once_or_not_at_all(missed: str, runs: int) -> None:
    """After an hour without a supervisor the newest tick runs, or none; all are dealt with."""
    schedule = Schedule(pattern="*/10 * * * *", missed=missed)  # type: ignore[arg-type]
    down, up = at("2026-01-01T00:00"), at("2026-01-01T01:05")

    due = schedule.due(after=down, now=up)

    assert due.ticks == (at("2026-01-01T01:00"),) * runs
    assert due.missed == 6 - runs
    assert due.last == at("2026-01-01T01:00")
    assert schedule.due(after=due.last, now=up) == Due()


def test_a_tick_on_time_stands_for_the_missed_ones() -> None:
    """Back right at a tick, `run_once` does not run the one before as well."""
    schedule = Schedule(pattern="*/10 * * * *")

    due = schedule.due(after=at("2026-01-01T00:00"), now=at("2026-01-01T00:30"))

    assert due.ticks == (at("2026-01-01T00:30"),)
    assert due.missed == 2


def test_years_of_missed_ticks_cost_little() -> None:
    """They are counted up to a thousand, and the newest is found from the end."""
    schedule = Schedule(pattern="* * * * *")

    due = schedule.due(after=at("2006-01-01T00:00"), now=at("2026-01-01T00:00:30"))

    assert due == Due(ticks=(at("2026-01-01T00:00"),), missed=1000, last=at("2026-01-01T00:00"))


def test_daylight_saving_loses_and_doubles_nothing() -> None:
    """A job at a skipped hour runs after the jump, and once in the hour that comes twice."""
    nightly = Schedule(pattern="30 2 * * *", timezone=BERLIN)

    assert local(nightly.next_ticks(at("2026-03-28T12:00", BERLIN), 2)) == [
        "2026-03-29T03:00",
        "2026-03-30T02:30",
    ]
    assert local(nightly.next_ticks(at("2026-10-24T12:00", BERLIN), 2)) == [
        "2026-10-25T02:30",
        "2026-10-26T02:30",
    ]


@pytest.mark.parametrize("pattern", ["", "* * * *", "* * * * * *", "61 * * * *", "0 0 31 2 *", "x"])
def test_a_pattern_that_does_not_parse_is_refused(pattern: str) -> None:
    """Also one with seconds, and one of a day that no year has."""
    with pytest.raises(CronSimError):
        Schedule(pattern=pattern)


def test_an_unknown_zone_is_refused() -> None:
    """At once, and not at its first tick."""
    with pytest.raises(ZoneInfoNotFoundError):
        Schedule(pattern="* * * * *", timezone="Mars/Olympus")
