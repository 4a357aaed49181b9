"""A short campaign of tests/chaos, and proof that a campaign can fail. In full: `make chaos`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.chaos import campaign, invariants
from tests.chaos.diary import Entry
from tests.chaos.evidence import Evidence
from tests.chaos.invariants import GatewayPut
from tests.chaos.leaks import leaks_in_files, leaks_in_processes
from tests.chaos.scale import small

SEED = 7
SCALE = small(SEED)
SLOT = "run/run-0/stream-0"


def line(at: float, pid: int, what: str, **facts: object) -> Entry:
    return {"at": at, "pid": pid, "what": what, **facts}


def minted(at: float, pid: int, credential_id: str) -> list[Entry]:
    """Give the lines of a mint that takes a tenth of a second."""
    return [
        line(at, pid, "mint.begun", mint=0, slot=SLOT),
        line(at + 0.01, pid, "put.sent", put=0, mint=0, slot=SLOT),
        line(at + 0.09, pid, "put.answered", put=0, status=202),
        line(at + 0.1, pid, "mint.ended", mint=0, ok=True),
        line(at + 0.1, pid, "credential.minted", slot=SLOT, credential_id=credential_id, used=True),
    ]


def evidence_of(*lines: list[Entry]) -> Evidence:
    evidence = Evidence()
    for some in lines:
        evidence.take(some)

    return evidence


def test_a_short_campaign_finds_nothing(tmp_path: Path) -> None:
    """8 attacked processes: one PUT at a time and each with a reason, nothing lost, no secret."""
    report = campaign.run(SCALE, tmp_path)

    assert report.faults == []
    assert report.read >= report.written == 2400
    assert report.reasons["cold"] == SCALE.slots
    assert sum(report.attacks.values()) > 10


def test_two_puts_at_once_are_found() -> None:
    """C1: overlapping PUTs are a fault for both sides, unless the slot is degraded."""
    both = minted(10.0, 1, "a"), minted(10.05, 2, "b")
    seen = [
        GatewayPut(slot=SLOT, started=10.02, finished=10.08, status=202),
        GatewayPut(slot=SLOT, started=10.07, finished=10.13, status=202),
    ]
    degraded = [line(9.0, 2, "cache.degraded", slot=SLOT, reason="full")]

    assert len([*invariants.overlaps(evidence_of(*both))]) == 1
    assert len([*invariants.gateway_overlaps(evidence_of(*both), seen)]) == 1
    assert [*invariants.overlaps(evidence_of(degraded, *both))] == []


def test_only_a_degraded_process_needs_no_reason() -> None:
    """A mint of a process that is alone is its own affair; anybody else's still needs a reason."""
    degraded = [line(10.2, 2, "cache.degraded", slot=SLOT, reason="full")]
    first, alone, other = minted(10.0, 1, "a"), minted(10.3, 2, "b"), minted(10.6, 3, "c")

    counts, faults = invariants.reasons(evidence_of(first, degraded, alone), SCALE)
    assert (counts, faults) == ({"cold": 1, "degraded": 1}, [])
    _, faults = invariants.reasons(evidence_of(first, degraded, alone, other), SCALE)
    assert len(faults) == 1


def test_a_put_after_its_predecessors_client_was_killed_is_none_at_once() -> None:
    """C1: a PUT is over when its client dies, even if the gateway goes on with it."""
    killed = [
        line(10.0, 1, "mint.begun", mint=0, slot=SLOT),
        line(10.01, 1, "put.sent", put=0, mint=0, slot=SLOT),
    ]
    evidence = evidence_of(
        killed, [line(10.04, 9, "writer.killed", victim=1)], minted(10.05, 2, "b")
    )
    seen = [
        GatewayPut(slot=SLOT, started=10.02, finished=10.5, status=202),
        GatewayPut(slot=SLOT, started=10.07, finished=10.13, status=202),
    ]

    assert [*invariants.overlaps(evidence)] == []
    assert [*invariants.gateway_overlaps(evidence, seen)] == []
    assert invariants.reasons(evidence, SCALE)[0] == {"cold": 1, "the mint before died": 1}


def test_a_put_that_nobody_sent_is_found() -> None:
    """A PUT in the gateway's log that no process of the campaign knows of is a fault."""
    seen = [GatewayPut(slot=SLOT, started=20.0, finished=20.1, status=202)]

    assert len([*invariants.gateway_overlaps(evidence_of(minted(10.0, 1, "a")), seen)]) == 1


def test_a_mint_without_a_reason_is_found() -> None:
    """A second mint is a fault, unless its predecessor was evicted, died or is due."""
    first, second = minted(10.0, 1, "new"), minted(11.0, 2, "newest")
    evicted = [line(10.5, 2, "evict.begun", slot=SLOT, credential_id="new")]
    late = [line(10.5, 2, "evict.begun", slot=SLOT, credential_id="old")]
    old = minted(9.0, 1, "old")

    assert len(invariants.reasons(evidence_of(first, second), SCALE)[1]) == 1
    assert invariants.reasons(evidence_of(first, evicted, second), SCALE)[1] == []
    (fault,) = invariants.reasons(
        evidence_of(
            old, [line(9.5, 1, "evict.begun", slot=SLOT, credential_id="old")], first, late, second
        ),
        SCALE,
    )[1]
    assert "without a reason" in fault
    due = minted(10.0 + 0.8 * SCALE.max_age, 2, "due")
    assert invariants.reasons(evidence_of(first, due), SCALE)[0]["due"] == 1


def test_a_credential_that_is_evicted_twice_is_found() -> None:
    """C3: what was taken from all cannot be taken again."""
    evicted = [
        line(at, pid, "credential.evicted", slot=SLOT, credential_id="old")
        for at, pid in ((10.0, 1), (11.0, 2))
    ]

    assert len([*invariants.evictions(evidence_of(evicted))]) == 1
    assert [*invariants.evictions(evidence_of(evicted[:1]))] == []


def test_a_stuck_waiter_is_found() -> None:
    """A wait beyond the bound is a fault; what a mint takes is not counted."""
    waited = [line(30.0, 2, "get.ended", slot=SLOT, began=10.0)]
    long_mint = [
        line(10.0, 1, "mint.begun", mint=0, slot=SLOT),
        line(29.0, 1, "mint.ended", mint=0, ok=True),
    ]

    assert len([*invariants.stuck(evidence_of(waited), SCALE)]) == 1
    assert [*invariants.stuck(evidence_of(long_mint, waited), SCALE)] == []


def test_missing_and_doubled_records_are_found() -> None:
    """What is acked and not read, read twice or out of order is a fault."""
    evidence = evidence_of(
        [
            line(1.0, 1, "sheet.opened", sheet="s", slot=SLOT, start=0),
            line(2.0, 1, "records.acked", sheet="s", slot=SLOT, upto=3),
        ]
    )

    def faults(*numbers: int) -> int:
        chunks = [{"writer": 0, "sheet": "s", "n": n} for n in numbers]
        return len([*invariants.misread(evidence, SLOT, chunks, {0: 3})])

    assert faults(0, 1, 2) == 0
    assert faults(0, 1) == 2
    assert faults(0, 1, 1, 2) == 1
    assert faults(0, 2, 1) == 1


def test_a_secret_in_a_file_is_found(tmp_path: Path) -> None:
    """The search finds a token, and the key, wherever they are."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "log").write_bytes(b"\0\xff Bearer tds_0123456789abcdefABCDEF \n")
    (tmp_path / "other").write_text("key=tr_dev_secret")
    (tmp_path / "clean").write_text("tds_ is how tokens begin")

    assert len([*leaks_in_files([tmp_path], "tr_dev_secret")]) == 2


def test_a_key_in_the_arguments_of_a_child_is_found() -> None:
    """C10: the arguments of every process that comes from this one are searched."""
    command = [sys.executable, "-c", "input()", "tr_dev_in_arguments"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as child:
        found = [*leaks_in_processes("tr_dev_in_arguments")]
        child.communicate(b"\n")

    assert found == [f"secret: the arguments in /proc/{child.pid}/cmdline holds the key"]
