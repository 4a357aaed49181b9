"""One campaign: a gateway, many writers, attacks, and what must hold all the same."""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos import invariants
from tests.chaos.arena import Arena, Board
from tests.chaos.attacks import Attacks
from tests.chaos.diary import Diary, DiaryReader
from tests.chaos.disk import small_disk
from tests.chaos.evidence import Evidence
from tests.chaos.fleet import Fleet, WriterFailedError
from tests.chaos.invariants import Excess, GatewayPut
from tests.chaos.leaks import leaks_in_files, leaks_in_processes
from tests.chaos.plan import totals_of
from tests.chaos.reading import read_all
from tests.chaos.scale import Scale
from tests.gateway_process import GatewayProcess, start_gateway

_GLANCE = 0.005
_LOOK_EVERY = 5.0
"""Seconds between two checks while the campaign lasts."""
_BOOT = 0.02
"""Seconds a writer is given to be there at the start."""


@dataclass(slots=True, kw_only=True)
class Report:
    """What a campaign was, and what it found."""

    scale: Scale
    faults: list[str] = field(default_factory=list)
    """What did not hold; nothing if all is well."""
    attacks: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    """Mints by their reason."""
    events: dict[str, int] = field(default_factory=dict)
    waits: dict[bool, Excess] = field(default_factory=dict)
    puts: int = 0
    retries: int = 0
    """PUTs that were further tries of one mint."""
    cold_puts: int = 0
    """PUTs before the first attack."""
    written: int = 0
    read: int = 0
    stored: int = 0
    """Records in the store: those sent twice count twice."""
    seconds: float = 0.0
    is_disk_filled: bool = False


def run(scale: Scale, folder: Path) -> Report:
    """Run a campaign in an empty folder and check it."""
    report = Report(scale=scale)
    began = time.monotonic()
    disk = folder / "disk"
    for each in (disk, folder / "data", folder / "diaries", folder / "output"):
        each.mkdir(mode=0o700)
    with ExitStack() as stack:
        report.is_disk_filled = stack.enter_context(small_disk(disk))
        gateway = stack.enter_context(start_gateway(folder / "data"))
        _Campaign(scale, folder, gateway, report).run()
    report.seconds = time.monotonic() - began

    return report


class _Campaign:
    def __init__(self, scale: Scale, folder: Path, gateway: GatewayProcess, report: Report) -> None:
        self._scale = scale
        self._gateway = gateway
        self._report = report
        self._evidence = Evidence()
        self._arena = Arena(
            scale=scale,
            folder=folder,
            disk=folder / "disk",
            url=gateway.url,
            secret_key=gateway.secret_key,
            board=Board(scale.writers),
            starts_at=time.time() + 0.5 + _BOOT * scale.writers,
        )
        self._reader = DiaryReader(self._arena.diaries)
        diary = Diary(self._arena.diaries / "harness.jsonl")
        self._fleet = Fleet(self._arena, diary)
        self._attacks = Attacks(
            self._arena, self._fleet, gateway, diary, can_fill=report.is_disk_filled
        )

    def run(self) -> None:
        """Attack while the writers write; then judge."""
        for slot in self._scale.slot_names:
            self._gateway.add_run(slot.parts[0])
        try:
            with self._writing():
                self._attack()
        except WriterFailedError as error:
            self._report.faults.append(str(error))
        self._judge()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        # The children share the parent's pages until somebody writes to them.
        gc.collect()
        gc.freeze()
        # So slow that everybody who wants the first credential of a slot comes while it is minted.
        cold = {"target": "control-plane", "seconds": 0.5, "count": self._scale.slots}
        self._gateway.fault(kind="delay", **cold)
        self._fleet.start()
        try:
            yield
        finally:
            self._attacks.end()
            self._fleet.end()

    def _attack(self) -> None:
        start = self._arena.starts_at
        ends, bound = start + self._scale.spread, start + self._scale.bound
        # Before the first refreshes: until then there is one reason for a PUT, a cold slot.
        next_strike = start + min(self._scale.spread / 20, self._scale.max_age / 2)
        next_look = start
        while self._fleet.running and not self._report.faults:
            now = time.time()
            if next_strike <= now < ends:
                self._note_cold_puts()
                next_strike = time.time() + self._attacks.strike()
            if next_look <= now:
                next_look = now + _LOOK_EVERY
                self._look()
            if now > bound:
                self._give_up()
            self._attacks.tend()
            self._fleet.tend()
            time.sleep(_GLANCE)

    def _note_cold_puts(self) -> None:
        if not self._report.attacks and not self._report.cold_puts:
            self._report.cold_puts = sum(self._gateway.stats()["puts"].values())

    def _look(self) -> None:
        """Check what can be checked on the way, so that a fault ends the campaign at once."""
        self._evidence.take(self._reader.news())
        self._report.faults += invariants.overlaps(self._evidence)
        self._report.faults += leaks_in_processes(self._arena.secret_key)
        self._report.faults += leaks_in_files([self._arena.disk], self._arena.secret_key)

    def _give_up(self) -> None:
        self._fleet.say_where()
        left = ", ".join(map(str, self._fleet.running))
        self._report.faults.append(
            f"stuck: after {self._scale.bound:.0f} s the writers {left} are not done; "
            f"their stacks are in {self._arena.output}"
        )

    def _judge(self) -> None:
        report, evidence = self._report, self._evidence
        is_whole = not report.faults
        evidence.take(self._reader.news())
        stats = self._gateway.stats()
        self._judge_puts([GatewayPut.of(mint) for mint in stats["mints"]])
        report.waits = invariants.longest_waits(evidence)
        report.faults += invariants.stuck(evidence, self._scale)
        report.attacks = self._attacks.counts
        report.events = dict(evidence.counts)
        report.stored = sum(stats["records"].values())
        if is_whole:
            self._judge_records()
        folders = [self._arena.folder]
        report.faults += leaks_in_files(folders, self._arena.secret_key)
        report.faults += leaks_in_processes(self._arena.secret_key)

    def _judge_puts(self, seen: list[GatewayPut]) -> None:
        report, evidence = self._report, self._evidence
        report.puts = len(seen)
        report.faults += [
            fault for fault in invariants.overlaps(evidence) if fault not in report.faults
        ]
        report.faults += invariants.gateway_overlaps(evidence, seen)
        report.reasons, unreasoned = invariants.reasons(evidence, self._scale)
        report.retries, repeated = invariants.retries(evidence)
        report.faults += [*unreasoned, *repeated, *invariants.evictions(evidence)]

    def _judge_records(self) -> None:
        report, scale = self._report, self._scale
        totals = {writer: totals_of(scale, writer) for writer in range(scale.writers)}
        report.written = sum(sum(slots.values()) for slots in totals.values())
        chunks = read_all(self._gateway.url, self._gateway.secret_key, scale.slot_names)
        for slot, read in chunks.items():
            report.read += len(read)
            wanted = {writer: slots.get(slot, 0) for writer, slots in totals.items()}
            report.faults += invariants.misread(self._evidence, slot, read, wanted)
