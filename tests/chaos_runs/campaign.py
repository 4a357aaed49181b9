"""One campaign: a runtime, its clients, attacks, and what must hold all the same."""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from td_runtime.store.check import check
from tests.chaos_runs import judge, marks, records
from tests.chaos_runs.attacks import Attacks
from tests.chaos_runs.clients import Clients
from tests.chaos_runs.diary import Diary
from tests.chaos_runs.evidence import Evidence, read_log, spans_of
from tests.chaos_runs.figures import Figures, figures_of
from tests.chaos_runs.host import Host, LogReader
from tests.chaos_runs.plan import wishes
from tests.chaos_runs.scale import Scale

_GLANCE = 0.01
_COUNT_EVERY = 0.5
"""Seconds between two looks at how many runs have no outcome."""
_GONE_WITHIN = 15.0
"""Seconds within which all processes of a killed supervisor are gone: R3 says 2 s, and a machine
that others use may take a while to let them."""
_STOP_PATIENCE = 40.0


@dataclass(slots=True, kw_only=True)
class Report:
    """What a campaign was, and what it found."""

    scale: Scale
    faults: list[str] = field(default_factory=list)
    """What did not hold; nothing if all is well."""
    strikes: Counter[str] = field(default_factory=Counter)
    lost_answers: int = 0
    """Requests that were sent and never answered, since the supervisor was killed."""
    figures: Figures | None = None
    seconds: float = 0.0


def run(scale: Scale, folder: Path) -> Report:
    """Run a campaign in an empty folder and judge it."""
    report = Report(scale=scale)
    began = time.monotonic()
    campaign = _Campaign(scale, folder, report)
    try:
        campaign.run()
    finally:
        campaign.end()
    report.seconds = time.monotonic() - began

    return report


class _Campaign:
    def __init__(self, scale: Scale, folder: Path, report: Report) -> None:
        self._scale = scale
        self._report = report
        self._random = random.Random(f"{scale.seed} restarts")
        self._diary = Diary(folder / "attacks.jsonl")
        self._host = Host(scale, folder)
        self._wishes = wishes(scale)
        self._clients = Clients(scale, self._host, self._wishes)
        self._attacks = Attacks(scale, self._host, self._diary)
        self._began = 0.0

    def run(self) -> None:
        """Attack while clients ask; then wait for the end, stop, and judge."""
        self._host.start()
        self._began = time.monotonic()
        self._clients.start()
        self._attack()
        self._attacks.end()
        self._wait_for_outcomes()
        self._clients.end(10.0)
        self._stop()
        self._judge()

    def end(self) -> None:
        """Leave nothing behind, whatever happened."""
        self._attacks.end()
        self._clients.end(1.0)
        self._host.ensure_dead()

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._began

    def _attack(self) -> None:
        restarts = self._restarts()
        next_strike = 0.0
        while not self._clients.are_done and not self._is_lost():
            if self._seconds >= next_strike:
                self._attacks.strike()
                next_strike = self._seconds + self._scale.strike_every
            self._attacks.tend()
            if restarts and self._seconds >= restarts[0]:
                restarts.pop(0)
                self._restart()
            time.sleep(_GLANCE)

    def _restarts(self) -> list[float]:
        """Return when the supervisor is killed: once in each part of the time, anywhere in it."""
        part = self._scale.spread / self._scale.restarts

        return [part * (n + self._random.uniform(0.1, 0.9)) for n in range(self._scale.restarts)]

    def _restart(self) -> None:
        waits = self._random.random() < 0.5  # else the new one finds the old one's workers alive
        self._attacks.kill_supervisor()
        if waits and (left := self._host.wait_until_gone(_GONE_WITHIN)):
            self._report.faults.append(f"left over by a killed supervisor: {left}")
        self._host.start()

    def _is_lost(self) -> bool:
        """Say whether going on makes no sense."""
        if self._host.process.poll() is not None:
            self._report.faults.append(f"the supervisor ended: {self._host.process.returncode}")
        if self._seconds > self._scale.bound:
            self._report.faults.append(f"the clients are not done after {self._scale.bound:.0f} s")

        return bool(self._report.faults or self._clients.errors)

    def _wait_for_outcomes(self) -> None:
        while not self._is_lost():
            if not records.count_unfinished(self._host.data_dir.run_store):
                return
            time.sleep(_COUNT_EVERY)

    def _stop(self) -> None:
        if self._host.process.poll() is not None:
            return
        code = self._host.stop(_STOP_PATIENCE)
        if code != 0:
            self._report.faults.append(f"the supervisor ended with {code}")
        if left := self._host.wait_until_gone(_GONE_WITHIN):
            self._report.faults.append(f"left over: {left}")

    def _judge(self) -> None:
        report = self._report
        store = self._host.data_dir.run_store
        report.faults += self._clients.errors
        report.faults += [f"store check: {problem}" for problem in check(store)]
        report.strikes = self._diary.counts()
        report.lost_answers = self._clients.lost_answers
        evidence = self._evidence()
        report.faults += judge.faults(evidence)
        report.figures = figures_of(evidence)

    def _evidence(self) -> Evidence:
        spans, stray = spans_of(marks.read(self._host.folder))
        lines = LogReader(self._host.log_file).news()
        deaths, ends = read_log(lines, self._diary.strikes)
        rows = records.read_all(self._host.data_dir.run_store)

        return Evidence(
            scale=self._scale,
            wishes=self._wishes,
            told=self._clients.told,
            found=self._clients.found,
            records={record.id: record for record in rows},
            spans=spans,
            deaths=deaths,
            ends=ends,
            strikes=self._diary.strikes,
            offset=time.time() - time.monotonic(),
            stray=stray,
        )
