"""A short campaign of tests/chaos_runs, and proof that a campaign can fail: `make chaos-runs`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.chaos_runs import campaign, judge
from tests.chaos_runs.diary import Strike
from tests.chaos_runs.evidence import Evidence, read_log, spans_of
from tests.chaos_runs.marks import Mark
from tests.chaos_runs.plan import Wish, wishes
from tests.chaos_runs.records import Record
from tests.chaos_runs.scale import full, small

SEED = 7


def record(run_id: str = "run_1", task: str = "quick", **changes: Any) -> Record:
    facts: dict[str, Any] = {
        "id": run_id,
        "task": task,
        "status": "COMPLETED",
        "attempt": 1,
        "excused": 0,
        "crashes": 0,
        "parent_id": None,
        "idempotency_key": None,
        "pid": 10,
        "run_at": 100.0,
        "started_at": 100.0,
        "finished_at": 200.0,
        "payload": {"n": 1},
        "output": 2,
        "error": None,
    }

    return Record(**{**facts, **changes})


def wish(key: str | None = None, delay: float = 0.0) -> Wish:
    return Wish(
        number=1,
        kind="quick",
        due=0.0,
        payload={"n": 1},
        key=key,
        repeats=(),
        delay=delay,
        cancel_after=None,
    )


def mark(at: float, what: str, run_id: str = "run_1", attempt: int = 1, **changes: Any) -> Mark:
    facts: dict[str, Any] = {"pid": 10, "process": "10-a"}

    return Mark(
        at=at, begins=what == "begin", run_id=run_id, attempt=attempt, **{**facts, **changes}
    )


def died(*runs: str, status: int = -9, pid: int = 10, second: int = 10) -> dict[str, Any]:
    return {
        "event": "worker.exited",
        "timestamp": f"1970-01-01T00:00:{second}+00:00",
        "worker_pid": pid,
        "status": status,
        "runs": list(runs),
    }


def killed(at: float, what: str = "kill", pid: int = 10) -> Strike:
    return Strike(at=at, wall=at, what=what, pid=pid)


def evidence(
    records: list[Record],
    marks: list[Mark] | None = None,
    *,
    log: list[dict[str, Any]] | None = None,
    strikes: list[Strike] | None = None,
    wished: list[Wish] | None = None,
    told: dict[int, list[str]] | None = None,
) -> Evidence:
    spans, stray = spans_of(marks or [])
    deaths, ends = read_log(log or [], strikes or [])

    return Evidence(
        scale=small(SEED),
        wishes=wished or [],
        told=told or {},
        found={},
        records={each.id: each for each in records},
        spans=spans,
        deaths=deaths,
        ends=ends,
        strikes=strikes or [],
        offset=0.0,
        stray=stray,
    )


CRASHED: dict[str, Any] = {"status": "CRASHED", "attempt": 3, "crashes": 3, "output": None}
ALONE = [mark(1, "begin"), mark(11, "begin", attempt=2), mark(21, "begin", attempt=3)]
DEATHS = [died("run_1", second=second) for second in (10, 20, 30)]
KILLS = [killed(9.9), killed(19.9), killed(29.9)]


@pytest.mark.timeout(180)  # a busy machine takes long to start workers and supervisors
def test_a_short_campaign_finds_nothing(tmp_path: Path) -> None:
    """Killed, stopped and crashing workers, killed supervisors: nothing lost, doubled or stuck."""
    report = campaign.run(small(SEED), tmp_path)

    assert report.faults == []
    assert report.strikes["kill supervisor"] == 2
    assert report.strikes["kill"] > 0
    assert report.figures is not None
    assert report.figures.runs > 300
    assert report.figures.cut_short > 10


def test_a_seed_plans_the_same_wishes() -> None:
    """All kinds are asked for, the same for each seed."""
    planned = wishes(full(SEED))

    assert planned == wishes(full(SEED))
    assert planned != wishes(full(SEED + 1))
    assert len(planned) == 20_000
    assert {each.kind for each in wishes(small(SEED))} == {each.kind for each in planned}


@pytest.mark.parametrize("changes", [{"status": "EXECUTING"}, {"status": "FAILED"}, {"output": 3}])
def test_a_wrong_outcome_is_found(changes: dict[str, Any]) -> None:
    """A run that is stuck, ended as its kind cannot, or returned something else, is a fault."""
    assert [*judge.outcomes(evidence([record()]))] == []
    assert len([*judge.outcomes(evidence([record(**changes)]))]) == 1


def test_a_second_outcome_is_found() -> None:
    """An outcome that was told twice, or is another one in the store, is a fault."""
    completed = {"event": "run.completed", "run_id": "run_1"}
    failed = {"event": "run.failed", "run_id": "run_1"}

    assert [*judge.outcomes(evidence([record()], log=[completed]))] == []
    assert len([*judge.outcomes(evidence([record()], log=[completed, completed]))]) == 1
    assert len([*judge.outcomes(evidence([record()], log=[failed]))]) == 1


def test_lost_and_doubled_runs_are_found() -> None:
    """R1: what was accepted is there, once; a key leads to one run."""
    wished = [wish(key="key-1")]
    one = record(idempotency_key="key-1")
    two = record("run_2", idempotency_key="key-1")

    whole = evidence([one], wished=wished, told={1: ["run_1", "run_1"]})
    assert [*judge.accepts(whole), *judge.keys(whole)] == []
    lost = evidence([], wished=wished, told={1: ["run_1"]})
    assert len([*judge.accepts(lost)]) == 2
    doubled = evidence([one, two], wished=wished, told={1: ["run_1", "run_2"]})
    assert len([*judge.accepts(doubled)]) == 1
    assert len([*judge.keys(doubled)]) == 2


def test_a_child_that_was_started_twice_is_found() -> None:
    """R9: two children of one call are a fault, as is one that is missing."""
    parent = record(task="parent", payload={"n": 1, "children": [["quick", {}], ["quick", {}]]})
    children = [
        record(f"run_{n}", parent_id="run_1", payload={"n": 1, "call": n % 2}) for n in (2, 3, 4)
    ]

    assert [*judge.children(evidence([parent, *children[:2]]))] == []
    assert len([*judge.children(evidence([parent, children[0]]))]) == 1
    assert len([*judge.children(evidence([parent, *children]))]) == 2


def test_a_run_that_is_executed_twice_at_once_is_found() -> None:
    """R3: attempts that overlap, or begin while another process has the run, are faults."""
    first = [mark(1, "begin"), mark(3, "end")]
    second: dict[str, Any] = {"attempt": 2, "process": "11-b", "pid": 11}
    twice = record(attempt=2)

    def faults(*marks: Mark) -> int:
        return len([*judge.overlaps(evidence([twice], list(marks)))])

    assert faults(*first, mark(4, "begin", **second), mark(5, "end", **second)) == 0
    overlapping = sorted(
        [*first, mark(2, "begin", **second), mark(5, "end", **second)], key=lambda each: each.at
    )
    assert faults(*overlapping) == 1
    assert faults(*first, mark(4, "begin", holder=10, **second), mark(5, "end", **second)) == 1
    # It never ended, and its process says something later than the next attempt's begin.
    alive = [mark(1, "begin"), mark(6, "begin", "run_2")]
    both = [twice, record("run_2", status="CANCELED")]
    marks = sorted(
        [*alive, mark(4, "begin", **second), mark(5, "end", **second)], key=lambda each: each.at
    )
    assert len([*judge.overlaps(evidence(both, marks))]) == 1


def test_an_attempt_after_the_outcome_is_found() -> None:
    """R5: nothing is executed once there is an outcome; nor is what was never handed out."""
    late = [mark(1, "begin"), mark(2, "end"), mark(201, "begin", attempt=2)]

    assert len([*judge.overlaps(evidence([record(status="CANCELED", attempt=2)], late))]) == 1
    assert len([*judge.overlaps(evidence([record(status="CANCELED")], late))]) == 2


def test_wrong_attempts_are_found() -> None:
    """Attempts that nobody used, more than the limit, and too few before the end are faults."""
    assert [*judge.attempts(evidence([record(attempt=9, excused=8)]))] == []
    assert len([*judge.attempts(evidence([record(attempt=2)]))]) == 1
    assert len([*judge.attempts(evidence([record(attempt=4, crashes=3)]))]) == 1
    failed = record(task="fail", status="FAILED", attempt=2)
    assert len([*judge.attempts(evidence([failed]))]) == 1
    early = record(status="CRASHED", attempt=2, crashes=2)
    assert len([*judge.attempts(evidence([early]))]) == 1


def test_a_run_is_crashed_if_the_campaign_killed_it_alone() -> None:
    """R8: three kills of its worker, each with nobody beside it, are its own by the rule."""
    assert [*judge.blame(evidence([record(**CRASHED)], ALONE, log=DEATHS, strikes=KILLS))] == []


def test_an_innocent_that_is_crashed_is_found() -> None:
    """R8: deaths that nobody caused cannot be those of a run that kills nobody."""
    found = [*judge.blame(evidence([record(**CRASHED)], ALONE, log=DEATHS, strikes=KILLS[:2]))]
    assert len(found) == 1
    assert "innocent" in found[0]
    killer = record(task="segfault", **CRASHED)
    assert [*judge.blame(evidence([killer], ALONE, log=DEATHS))] == []


def test_blame_with_neighbours_is_found() -> None:
    """R8: whoever was executed beside others is not blamed; a parent that waits is no neighbour."""
    marks = [mark(1, "begin"), mark(2, "begin", "run_2")]
    blamed = record(attempt=2, crashes=1)

    def faults(neighbour: str, *runs: str) -> int:
        beside = record("run_2", neighbour, attempt=2, excused=1)
        waiting = [{"event": "run.waiting", "run_id": "run_2"}] if neighbour == "parent" else []
        log = [*waiting, died(*runs)]
        return len([*judge.blame(evidence([blamed, beside], marks, log=log, strikes=KILLS))])

    assert faults("parent", "run_1", "run_2") == 0
    assert faults("quick", "run_1") == 1
    assert faults("quick", "run_1", "run_2") == 1


def test_a_blame_that_is_missing_is_found() -> None:
    """R8: a run that was alone is blamed, unless its supervisor was killed a moment later."""
    escaped = record(attempt=2, excused=1)
    log, marks = [died("run_1")], [mark(1, "begin")]
    last = [killed(9.9), killed(10.5, "kill supervisor", 1)]

    assert len([*judge.blame(evidence([escaped], marks, log=log, strikes=KILLS))]) == 1
    assert [*judge.blame(evidence([escaped], marks, log=log, strikes=last))] == []


def test_a_death_without_a_reason_is_found() -> None:
    """Whatever ends a worker is an attack, a task that does so, or the end of its time."""

    def faults(task: str, status: int, *strikes: Strike, **changes: Any) -> int:
        log = [died("run_1", status=status)]
        runs = [record(task=task, **changes)]
        one = evidence(runs, [mark(1, "begin")], log=log, strikes=list(strikes))
        return len([*judge.deaths(one)])

    assert faults("quick", -9, killed(9.9)) == 0
    overdue: dict[str, Any] = {"finished_at": 9.9, "error": {"message": "it did not stop"}}
    assert faults("ignore", -9, **overdue) == 0
    assert faults("obey", -9, finished_at=9.9) == 0  # it has ended after all, and too late
    assert faults("ignore", -9) == 1
    assert faults("segfault", -11) == 0
    assert faults("leave", 3) == 0
    assert faults("quick", 0) == 0
    assert faults("quick", -9) == 1
    assert faults("quick", -9, killed(9.9, pid=11)) == 1
    assert faults("quick", 1) == 1


def test_a_run_that_begins_too_early_is_found() -> None:
    """A delayed run begins at its time or later."""
    wished = [wish(delay=1.0)]

    def faults(at: float) -> int:
        return len([*judge.delays(evidence([record()], [mark(at, "begin")], wished=wished))])

    assert (faults(100.0), faults(99.0)) == (0, 1)
