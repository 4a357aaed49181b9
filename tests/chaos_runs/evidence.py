"""What is known of a campaign when it is over: rows, marks, log lines, and what was attacked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any, TypeVar

from tests.chaos_runs.diary import Strike
from tests.chaos_runs.marks import Mark
from tests.chaos_runs.plan import CANCELED, OVERDUE, Wish
from tests.chaos_runs.records import Record
from tests.chaos_runs.scale import Scale

KeyT = TypeVar("KeyT")

_LAST_WORDS = 2.0
"""Seconds before the kill of a supervisor in which it may have logged what it did not commit."""

ENDS = frozenset(
    {"run.completed", "run.failed", "run.crashed", "run.timed_out", "run.canceled", "run.expired"}
)


@dataclass(slots=True, kw_only=True)
class Span:
    """One attempt as its process saw it."""

    run_id: str
    attempt: int
    process: str
    pid: int
    began: float
    """Seconds on the monotonic clock, as the end."""
    ended: float | None = None
    """None: it ended with its process."""
    holder: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """The end of a worker as the supervisor saw it."""

    at: float
    """Seconds since the epoch."""
    pid: int
    status: int
    held: tuple[str, ...]
    executing: tuple[str, ...]
    """Those of them that did not wait for children."""
    is_last: bool
    """Whether the supervisor was killed so soon after it that it may not have recorded it."""

    is_drained: bool = False
    """Whether the supervisor was stopping: workers that boot are killed then."""

    @property
    def blamed(self) -> str | None:
        """The run that was alone in the worker, if one was (R8)."""
        alone = self.executing or self.held

        return alone[0] if len(alone) == 1 and self.status != 0 else None


@dataclass(kw_only=True)
class Evidence:
    """Everything that a campaign is judged by."""

    scale: Scale
    wishes: list[Wish]
    told: Mapping[int, list[str]]
    found: Mapping[int, str]
    records: dict[str, Record]
    spans: dict[str, list[Span]]
    """The attempts of each run in the order of their begins."""
    deaths: list[Death]
    ends: dict[str, list[str]]
    """The ends of each run that were logged."""
    strikes: list[Strike]
    offset: float
    """What is added to monotonic seconds to have seconds since the epoch."""
    stray: list[Mark] = field(default_factory=list)
    """Ends without a begin."""

    @cached_property
    def by_process(self) -> dict[str, list[Span]]:
        """The attempts of each process."""
        return _grouped(self.spans, lambda span: span.process)

    @cached_property
    def by_pid(self) -> dict[int, list[Span]]:
        """The attempts of all processes that had a number."""
        return _grouped(self.spans, lambda span: span.pid)

    @cached_property
    def kills(self) -> dict[int, list[Strike]]:
        """The workers that the campaign killed, by number."""
        found: dict[int, list[Strike]] = defaultdict(list)
        for strike in self.strikes:
            if strike.what == "kill":
                found[strike.pid].append(strike)

        return dict(found)

    @cached_property
    def told_to_end(self) -> dict[int, list[Record]]:
        """The runs that were canceled or had too little time, by the number of the process."""
        found: dict[int, list[Record]] = defaultdict(list)
        for record in self.records.values():
            if record.task in CANCELED | OVERDUE and record.pid is not None:
                found[record.pid].append(record)

        return dict(found)


def _grouped(spans: Mapping[str, list[Span]], by: Callable[[Span], KeyT]) -> dict[KeyT, list[Span]]:
    found: dict[KeyT, list[Span]] = defaultdict(list)
    for of_run in spans.values():
        for span in of_run:
            found[by(span)].append(span)

    return dict(found)


def spans_of(marks: Iterable[Mark]) -> tuple[dict[str, list[Span]], list[Mark]]:
    """Put begins and ends together; the second answer is ends without a begin."""
    spans: dict[str, list[Span]] = defaultdict(list)
    open_: dict[tuple[str, int, str], Span] = {}
    stray: list[Mark] = []
    for mark in marks:
        key = (mark.run_id, mark.attempt, mark.process)
        if mark.begins:
            open_[key] = span = Span(
                run_id=mark.run_id,
                attempt=mark.attempt,
                process=mark.process,
                pid=mark.pid,
                began=mark.at,
                holder=mark.holder,
            )
            spans[mark.run_id].append(span)
        elif (began := open_.pop(key, None)) is not None:
            began.ended = mark.at
        else:
            stray.append(mark)

    return dict(spans), stray


def read_log(
    lines: Iterable[dict[str, Any]], strikes: Iterable[Strike]
) -> tuple[list[Death], dict[str, list[str]]]:
    """Return the ends of workers and of runs that were logged."""
    kills = [strike.wall for strike in strikes if strike.what == "kill supervisor"]
    waiting: set[str] = set()
    is_draining = False
    deaths: list[Death] = []
    ends: dict[str, list[str]] = defaultdict(list)
    for line in lines:
        event = line["event"]
        if event == "runtime.started":
            waiting.clear()
            is_draining = False
        elif event == "runtime.drain_requested":
            is_draining = True
        elif event == "run.waiting":
            waiting.add(line["run_id"])
        elif event in {"run.resumed", "run.started"}:
            waiting.discard(line["run_id"])
        elif event in ENDS:
            ends[line["run_id"]].append(event.partition(".")[2].upper())
        elif event == "worker.exited":
            deaths.append(_death(line, waiting, kills, is_drained=is_draining))
            # Handed out anew they execute, even if they die before they say so.
            waiting.difference_update(line["runs"])

    return deaths, dict(ends)


def _death(
    line: dict[str, Any], waiting: set[str], kills: list[float], *, is_drained: bool
) -> Death:
    at = datetime.fromisoformat(line["timestamp"]).timestamp()
    held = tuple(line["runs"])

    return Death(
        at=at,
        pid=line["worker_pid"],
        status=line["status"],
        held=held,
        executing=tuple(run_id for run_id in held if run_id not in waiting),
        is_last=any(0 <= kill - at <= _LAST_WORDS for kill in kills),
        is_drained=is_drained,
    )
