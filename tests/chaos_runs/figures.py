"""What a campaign looked like: counts, and how soon runs went on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from tests.chaos_runs.evidence import Evidence, Span

_NOT_BEFORE = 0.05
"""Longest time from a kill to the supervisor's next hand-out that counts as its cause; no bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Counts and times of one campaign."""

    runs: int
    children: int
    repeats: int
    """Answers beyond the first to requests with one key."""
    statuses: Counter[tuple[str, str]]
    """Runs by kind and status."""
    begun: int
    """Attempts that began."""
    cut_short: int
    """Attempts that ended with their process."""
    excused: int
    crashes: int
    deaths: Counter[int]
    """Ends of workers by exit status, -signal if by one; 0: replaced or drained."""
    together: int
    """Deaths of workers with several runs: nobody is blamed, all run alone next."""
    alone: int
    """Deaths of workers with one run."""
    again: list[float]
    """Seconds from the kill of a worker to the next begin of each run that it executed, sorted."""
    after_restart: list[float]
    """Seconds from the kill of a supervisor to the first begin of any run, sorted."""


def figures_of(evidence: Evidence) -> Figures:
    """Count."""
    records = evidence.records.values()
    spans = [span for of_run in evidence.spans.values() for span in of_run]

    return Figures(
        runs=len(records),
        children=sum(record.parent_id is not None for record in records),
        repeats=sum(max(0, len(told) - 1) for told in evidence.told.values()),
        statuses=Counter((record.task, record.status) for record in records),
        begun=len(spans),
        cut_short=sum(span.ended is None for span in spans),
        excused=sum(record.excused for record in records),
        crashes=sum(record.crashes for record in records),
        deaths=Counter(death.status for death in evidence.deaths),
        together=sum(len(death.executing or death.held) > 1 for death in evidence.deaths),
        alone=sum(death.blamed is not None for death in evidence.deaths),
        again=sorted(_again(evidence)),
        after_restart=sorted(_after_restart(evidence, spans)),
    )


def _again(evidence: Evidence) -> Iterable[float]:
    for before, after in (pair for spans in evidence.spans.values() for pair in pairwise(spans)):
        if before.ended is not None:
            continue
        kills = [
            strike.at
            for strike in evidence.kills.get(before.pid, [])
            if before.began <= strike.at <= after.began
        ]
        if kills:
            yield after.began - kills[0]


def _after_restart(evidence: Evidence, spans: list[Span]) -> Iterable[float]:
    begins = sorted(span.began for span in spans)
    for strike in evidence.strikes:
        if strike.what != "kill supervisor":
            continue
        # What a worker begins in its last moments is no sign of the new supervisor's life.
        later = next((began for began in begins if began > strike.at + _NOT_BEFORE), None)
        if later is not None:
            yield later - strike.at
