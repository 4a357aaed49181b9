"""What must hold whatever was attacked. Pure: evidence in, faults out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

from tests.chaos_runs.evidence import Death, Evidence, Span
from tests.chaos_runs.plan import CANCELED, OVERDUE, PARENTS, UNSTOPPABLE
from tests.chaos_runs.records import Record

_FINISHED = frozenset({"COMPLETED", "FAILED", "CRASHED", "TIMED_OUT", "CANCELED"})
_CLOCK = 0.1
"""Seconds by which the clocks of two processes, and the order of two lines, may differ."""
_LATE_END = 2.0
"""Seconds between an end and the death of its worker that may belong together."""
_SEEN_WITHIN = 10.0
"""Seconds within which a busy supervisor sees that a worker is dead."""


def faults(evidence: Evidence) -> Iterator[str]:
    """Give everything that does not hold."""
    yield from accepts(evidence)
    yield from keys(evidence)
    yield from children(evidence)
    yield from outcomes(evidence)
    yield from overlaps(evidence)
    yield from attempts(evidence)
    yield from deaths(evidence)
    yield from blame(evidence)
    yield from delays(evidence)


# --- R1: what was accepted is there ---------------------------------------------------------


def accepts(evidence: Evidence) -> Iterator[str]:
    """R1: what `trigger` returned is in the store, and nothing else is."""
    roots: dict[int, list[str]] = defaultdict(list)
    for record in evidence.records.values():
        if record.parent_id is None:
            roots[record.number].append(record.id)
    for wish in evidence.wishes:
        told = [*evidence.told[wish.number], *filter(None, [evidence.found.get(wish.number)])]
        if not told:
            yield f"R1: nobody accepted wish {wish.number} ({wish.kind})"
        for run_id in told:
            if run_id not in evidence.records:
                yield f"R1: {run_id} was accepted and is not in the store"
        if len(roots[wish.number]) != 1:
            yield f"R1: wish {wish.number} ({wish.kind}) has the runs {roots[wish.number]}"


def keys(evidence: Evidence) -> Iterator[str]:
    """A run with an idempotency key exists once, whoever asks and how often."""
    by_key: dict[str, list[str]] = defaultdict(list)
    for record in evidence.records.values():
        if record.idempotency_key is not None and record.parent_id is None:
            by_key[record.idempotency_key].append(record.id)
    for wish in evidence.wishes:
        if wish.key is None:
            continue
        if len(by_key[wish.key]) != 1:
            yield f"keys: {wish.key} has the runs {by_key[wish.key]}"
        if len(told := set(evidence.told[wish.number])) != 1:
            yield f"keys: {wish.key} was answered with {sorted(told)}"


def children(evidence: Evidence) -> Iterator[str]:
    """R9: a parent that starts over finds its children again."""
    calls: dict[str, list[int]] = defaultdict(list)
    for record in evidence.records.values():
        if record.parent_id is not None:
            calls[record.parent_id].append(record.payload["call"])
    for parent_id, made in calls.items():
        parent = evidence.records[parent_id]
        if len(set(made)) != len(made):
            yield f"R9: {parent} has children of the calls {sorted(made)}"
    for record in evidence.records.values():
        if record.task in PARENTS and record.status == "COMPLETED":
            wanted = len(record.payload["children"])
            if len(calls[record.id]) != wanted:
                yield f"R9: {record} completed with {len(calls[record.id])} of {wanted} children"


# --- R5: one outcome ------------------------------------------------------------------------


def outcomes(evidence: Evidence) -> Iterator[str]:
    """Every run has one outcome, which its kind can have, and it was told once and so."""
    for record in evidence.records.values():
        if record.status not in _FINISHED:
            yield f"stuck: {record}"
            continue
        if record.status not in _possible(record):
            yield f"outcome: {record} cannot end so: {record.error}"
        if record.status == "COMPLETED" and record.output != 2 * record.number:
            yield f"outcome: {record} returned {record.output}, not {2 * record.number}"
        told = evidence.ends.get(record.id, [])
        if told not in ([], [record.status]):
            yield f"outcome: {record} was told to be {told}"


def _possible(record: Record) -> set[str]:
    """Return how a run may end; CRASHED is judged by itself."""
    kind = record.task
    if kind in CANCELED:
        return {"CANCELED", "CRASHED"}
    if kind in OVERDUE:
        return {"TIMED_OUT", "CRASHED"}
    if kind == "fail":
        return {"FAILED", "CRASHED"}
    if kind in {"segfault", "leave"}:
        return {"CRASHED"}
    if kind == "fail_once":
        return {"COMPLETED", "CRASHED", "FAILED"}

    return {"COMPLETED", "CRASHED"}


# --- R3: never twice at once ----------------------------------------------------------------


def overlaps(evidence: Evidence) -> Iterator[str]:
    """No run is executed twice at once, nor after its outcome."""
    last_seen = {
        process: max(span.ended or span.began for span in spans)
        for process, spans in evidence.by_process.items()
    }
    for mark in evidence.stray:
        yield f"marks: {mark} ends what never began"
    for run_id, spans in evidence.spans.items():
        if run_id not in evidence.records:
            yield f"R1: {run_id} was executed and is not in the store"
            continue
        for span in spans:
            if span.holder:
                yield f"twice: {_text(span)} began while process {span.holder} executed the run"
        for before, after in pairwise(spans):
            # An attempt without an end ended with its process, which can say nothing afterwards.
            end = before.ended or last_seen[before.process]
            if end > after.began:
                yield f"twice: {_text(before)} went on when {_text(after)} began"
            if before.attempt >= after.attempt:
                yield f"twice: {_text(after)} follows {_text(before)}"
        yield from _late(evidence, evidence.records[run_id], spans[-1])


def _late(evidence: Evidence, record: Record, last: Span) -> Iterator[str]:
    if record.finished_at is not None:
        began = last.began + evidence.offset
        if began > record.finished_at + _CLOCK:
            yield f"late: {_text(last)} began {began - record.finished_at:.3f} s after the outcome"
    if last.attempt > record.attempt:
        yield f"late: {_text(last)} was never handed out: {record}"
    if record.status == "COMPLETED" and last.ended is None:
        yield f"outcome: {record} completed, and its last attempt never ended"


def _text(span: Span) -> str:
    return f"attempt {span.attempt} of {span.run_id} in process {span.process}"


# --- R8: attempts and blame -----------------------------------------------------------------


def attempts(evidence: Evidence) -> Iterator[str]:
    """Attempts that count are those that failed, crashed or brought the outcome; no more."""
    most = evidence.scale.max_attempts
    for record in evidence.records.values():
        spans = evidence.spans.get(record.id, [])
        if len(spans) > record.attempt:
            yield f"attempts: {record} was begun {len(spans)} times"
        if record.used > most:
            yield f"attempts: {record} has used {record.used} of {most}"
        if record.used - record.crashes not in _other_attempts(record):
            yield f"attempts: {record} has used {record.used}"
        if record.status == "FAILED" and record.used != most:
            yield f"attempts: {record} failed for good after {record.used} of {most}"
        if record.status == "CRASHED" and (
            record.crashes < evidence.scale.max_crashes and record.used < most
        ):
            yield f"attempts: {record} has crashes and attempts left"


def _other_attempts(record: Record) -> range:
    """Return how many attempts a run may have used that did not crash."""
    failed = {"fail": 3, "fail_once": 1}.get(record.task, 0)
    match record.status:
        case "CRASHED":
            return range(failed + 1)
        case "CANCELED":
            return range(2)
        case _:
            return range(1, failed + 2)


def deaths(evidence: Evidence) -> Iterator[str]:
    """Every death of a worker has a reason that this campaign knows of."""
    for death in evidence.deaths:
        inside = _open_in(evidence, death)
        kinds = {evidence.records[span.run_id].task for span in inside}
        match death.status:
            case 0:
                is_known = True
            case -9:
                is_known = (
                    death.is_drained
                    or _was_killed(evidence, death)
                    or _may_be_overdue(evidence, death, kinds)
                )
            case -11:
                is_known = bool(kinds & {"segfault", "segfault_once"})
            case 3:
                is_known = "leave" in kinds
            case _:
                is_known = False
        if not is_known:
            yield f"R8: worker {death.pid} died with {death.status}, executing {sorted(kinds)}"


def blame(evidence: Evidence) -> Iterator[str]:
    """R8: a run is blamed for the deaths in which it was alone, and for no other.

    So nobody is CRASHED but those that kill workers, and those that the campaign has killed with
    their worker, alone, as often as that.
    """
    blamed: dict[str, list[Death]] = defaultdict(list)
    for death in evidence.deaths:
        if death.blamed is not None and not _is_overdue(evidence, death):
            blamed[death.blamed].append(death)
            yield from _judge_blame(evidence, death, evidence.records[death.blamed])
    for record in evidence.records.values():
        of_run = blamed[record.id]
        most, least = len(of_run), sum(not _is_unsure(evidence, death) for death in of_run)
        if not least <= record.crashes <= most:
            yield f"R8: {record} was alone in {most} dying workers ({most - least} unsure)"
        yield from _judge_own(evidence, record, of_run)


def _is_unsure(evidence: Evidence, death: Death) -> bool:
    return death.is_last or _may_be_overdue(evidence, death, set())


def _judge_blame(evidence: Evidence, death: Death, record: Record) -> Iterator[str]:
    others = {span.run_id for span in _open_in(evidence, death)} - {record.id}
    beside = [evidence.records[run_id] for run_id in others]
    if executing := [str(other) for other in beside if other.task not in PARENTS]:
        yield f"R8: {record} was blamed, though {executing} was executed beside it"


def _judge_own(evidence: Evidence, record: Record, of_run: list[Death]) -> Iterator[str]:
    own = [
        death
        for death in of_run
        if not (_was_killed(evidence, death) or _is_unsure(evidence, death))
    ]
    most = {"segfault": 3, "leave": 3, "segfault_once": 1}.get(record.task, 0)
    if len(own) > most:
        yield f"R8: innocent: {record} was blamed for {own}"


def _open_in(evidence: Evidence, death: Death) -> list[Span]:
    """Return the attempts that a worker was executing when it died."""
    at = death.at - evidence.offset
    begun = [span for span in evidence.by_pid.get(death.pid, []) if span.began <= at + _CLOCK]
    if not begun:
        return []
    # Numbers of processes come again: the newest of that number.
    process = max(begun, key=lambda span: span.began).process

    return [span for span in begun if span.process == process and span.ended is None]


def _was_killed(evidence: Evidence, death: Death) -> bool:
    return any(
        death.at - _SEEN_WITHIN <= strike.wall <= death.at + _CLOCK
        for strike in evidence.kills.get(death.pid, [])
    )


def _is_overdue(evidence: Evidence, death: Death) -> bool:
    """Say whether the runtime killed the worker for a run that had to end and did not."""
    return any(
        record.is_overdue and record.id in death.held
        for record in evidence.told_to_end.get(death.pid, [])
    )


def _may_be_overdue(evidence: Evidence, death: Death, kinds: set[str]) -> bool:
    """The same, or a run there has ended after all, while its worker was killed for it."""
    if death.is_last and kinds & UNSTOPPABLE:
        return True

    return any(
        record.finished_at is not None and abs(record.finished_at - death.at) < _LATE_END
        for record in evidence.told_to_end.get(death.pid, [])
    )


# --- time -----------------------------------------------------------------------------------


def delays(evidence: Evidence) -> Iterator[str]:
    """No run begins before its time."""
    delayed = {wish.number for wish in evidence.wishes if wish.delay}
    for record in evidence.records.values():
        if record.number not in delayed or record.parent_id is not None or record.used > 1:
            continue
        for span in evidence.spans.get(record.id, [])[:1]:
            if (early := record.run_at - span.began - evidence.offset) > _CLOCK:
                yield f"time: {record} began {early:.3f} s before its time"
