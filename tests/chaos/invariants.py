"""What must hold whatever was attacked, judged by the evidence. Pure: facts in, faults out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from typing import Any

from tests.chaos.evidence import Evidence, Mint, Put, Span, Wait
from tests.chaos.scale import Scale

_TICK = 0.05
"""Seconds by which two processes' lines about one moment may differ."""
_HAIR = 0.001
"""Seconds that reading a clock and writing it down may take."""
_LEAST_FRESH = 0.75
"""A credential is refreshed after this share of its life, or later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayPut:
    """One PUT as the gateway saw it."""

    slot: str
    started: float
    finished: float
    status: int | None

    @classmethod
    def of(cls, mint: dict[str, Any]) -> GatewayPut:
        """Take it out of the gateway's statistics."""
        return cls(
            slot=mint["slot"],
            started=mint["started_at"],
            finished=inf if mint["finished_at"] is None else mint["finished_at"],
            status=mint["status"],
        )


# --- C1: one PUT at a time -------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Flight:
    """A PUT in flight, as somebody saw it."""

    put: Put
    since: float
    until: float

    def __str__(self) -> str:
        return (
            f"process {self.put.pid} had a PUT in flight from {self.since:.3f} to {self.until:.3f}"
        )


def overlaps(evidence: Evidence) -> Iterator[str]:
    """C1, as the clients saw it: tell each pair of PUTs of a slot that were in flight at once."""
    for slot, puts in evidence.puts.items():
        flights = [_Flight(put=put, since=put.sent, until=put.ended) for put in puts]
        yield from _overlaps(evidence, slot, flights)


def gateway_overlaps(evidence: Evidence, seen: Iterable[GatewayPut]) -> Iterator[str]:
    """C1, as the gateway saw it; and tell each PUT that no process of the campaign made.

    A PUT whose client died is over at that moment, even if the gateway went on with it.
    """
    by_slot: dict[str, list[GatewayPut]] = {}
    for put in seen:
        by_slot.setdefault(put.slot, []).append(put)
    for slot, puts in by_slot.items():
        clients = _match(evidence.puts.get(slot, []), puts)
        flights = []
        for put, client in zip(puts, clients, strict=True):
            if client is None:
                yield f"C1: {slot}: the gateway saw a PUT at {put.started:.3f} that nobody had sent"
                continue
            until = put.finished if client.status is not None else min(put.finished, client.ended)
            flights.append(_Flight(put=client, since=put.started, until=until))
        yield from _overlaps(evidence, slot, flights)


def _overlaps(evidence: Evidence, slot: str, flights: Sequence[_Flight]) -> Iterator[str]:
    flights = sorted(flights, key=lambda flight: flight.since)
    for number, first in enumerate(flights):
        for second in flights[number + 1 :]:
            if second.since >= first.until:
                break
            if second.since < second.until and not _is_excused(evidence, slot, first, second):
                yield f"C1: {slot}: {first}, and {second}"


def _is_excused(evidence: Evidence, slot: str, first: _Flight, second: _Flight) -> bool:
    """Tell whether two PUTs may be in flight: one is degraded, or the locks were deleted."""
    if first.put.is_alone or second.put.is_alone:
        return True

    # One took its lock before the files were deleted, the other a lock on a new file. A row is read
    # between taking a lock and minting, at most for as long as the store may be busy.
    locked = min(first.put.since, second.put.since) - 2.0 - _TICK, second.since
    deletions = [span for kind, span in evidence.folder if kind == "delete"]

    return any(_touch(span, locked) for span in deletions)


def _match(clients: Sequence[Put], seen: Sequence[GatewayPut]) -> list[Put | None]:
    """Find whose PUT each was, so that as few as possible are nobody's."""
    taken: dict[int, int] = {}

    def find(number: int, tried: set[int]) -> bool:
        for client in _candidates(clients, seen[number]):
            if client not in tried:
                tried.add(client)
                # Whoever took it before may be content with another.
                if client not in taken or find(taken[client], tried):
                    taken[client] = number
                    return True

        return False

    for number in range(len(seen)):
        find(number, set())
    owners = {number: clients[client] for client, number in taken.items()}

    return [owners.get(number) for number in range(len(seen))]


def _candidates(clients: Sequence[Put], put: GatewayPut) -> list[int]:
    """Give the clients that may have sent a PUT, the likeliest first."""
    fitting = [number for number, client in enumerate(clients) if _fits(client, put)]

    return sorted(
        fitting,
        key=lambda number: (
            clients[number].status is None,
            clients[number].ended < put.started,
            clients[number].ended,
        ),
    )


def _fits(client: Put, put: GatewayPut) -> bool:
    if client.sent > put.started + _HAIR:
        return False

    return client.status is None or (
        put.finished <= client.ended + _HAIR and put.status == client.status
    )


# --- no PUT without a reason, and C3 ---------------------------------------------------------


def reasons(evidence: Evidence, scale: Scale) -> tuple[Counter[str], list[str]]:
    """Give how many mints had which reason, and tell each that had none."""
    counts: Counter[str] = Counter()
    faults = []
    for slot, mints in evidence.mints.items():
        before: Mint | None = None
        for mint in sorted(mints, key=lambda mint: mint.begun):
            if mint.is_alone:
                # For its process only: it neither needs a reason of the others, nor gives them one.
                counts["degraded"] += 1
                continue
            reason = _reason(evidence, scale, slot, before, mint)
            counts[reason or "none"] += 1
            if reason is None and before is not None:
                faults.append(_unreasoned(evidence, slot, before, mint))
            before = mint

    return counts, faults


def evictions(evidence: Evidence) -> Iterator[str]:
    """C3: tell each credential that was taken from all twice: the second was a newer one."""
    for (slot, credential_id), times in evidence.evicted.items():
        for first, second in pairwise(sorted(times)):
            # A process without the shared file evicts from its own memory, and may bring back what
            # the others have evicted meanwhile.
            between = first - _TICK, second + _TICK
            if not any(_touch((since, until), between) for since, until in evidence.alone[slot]):
                yield (
                    f"C3: {slot}: {credential_id}, evicted at {first:.3f}, was evicted again at "
                    f"{second:.3f}: another one must have gone instead"
                )


def retries(evidence: Evidence) -> tuple[int, list[str]]:
    """Give how many PUTs were tries of a mint after its first, and tell each without a failure."""
    count = 0
    faults = []
    for slot, mints in evidence.mints.items():
        for mint in mints:
            for first, second in pairwise(mint.puts):
                count += 1
                if first.is_good:
                    faults.append(
                        f"{slot}: process {second.pid} sent a PUT at {second.sent:.3f} in a mint "
                        f"whose PUT at {first.sent:.3f} had succeeded"
                    )

    return count, faults


def _reason(
    evidence: Evidence, scale: Scale, slot: str, before: Mint | None, mint: Mint
) -> str | None:
    if before is None:
        return "cold"
    if not before.is_good:
        return "the mint before died" if before.pid in evidence.killed else "the mint before failed"
    if before.credential_id is None:
        return "the mint before died"
    if evidence.evictions.get(before.credential_id, inf) <= mint.begun:
        return "evicted"
    if mint.begun >= before.begun + _LEAST_FRESH * scale.max_age - _TICK:
        return "due"

    return _reason_of_the_folder(evidence, slot, before, mint)


def _reason_of_the_folder(evidence: Evidence, slot: str, before: Mint, mint: Mint) -> str | None:
    between = before.begun - _TICK, mint.begun + _TICK
    if any(_touch(span, between) for span in (*evidence.replaced, *_damages(evidence))):
        return "the shared file was lost"
    if any(between[0] <= at <= between[1] for at in evidence.refused_rows[slot]):
        return "the row was refused"
    if not before.is_used:
        return "the mint before came too late"

    return None


def _damages(evidence: Evidence) -> Iterator[Span]:
    """Give when the shared file was damaged: until it was replaced by a new one."""
    for kind, (began, ended) in evidence.folder:
        if kind == "corrupt":
            mended = [until for since, until in evidence.replaced if until > ended]
            yield began, min(mended, default=inf)
        else:
            yield began, ended


def _unreasoned(evidence: Evidence, slot: str, before: Mint, mint: Mint) -> str:
    text = (
        f"{slot}: process {mint.pid} minted at {mint.begun:.3f} without a reason: "
        f"{before.credential_id} was minted at {before.begun:.3f} by process {before.pid}"
    )
    older = [
        f"{other.credential_id} (minted at {other.begun:.3f})"
        for other in evidence.mints[slot]
        if other.begun < before.begun
        and other.credential_id is not None
        and before.begun <= evidence.evictions.get(other.credential_id, -inf) <= mint.begun
    ]
    if older:
        text += f"; C3: meanwhile the eviction of an older one was asked for: {', '.join(older)}"

    return text


# --- nobody waits for nothing ----------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Excess:
    """How long somebody waited beyond the mint itself."""

    seconds: float
    wait: Wait
    is_attacked: bool
    """Whether meanwhile a process was stopped, the folder attacked or the slot degraded."""

    def __str__(self) -> str:
        wait = self.wait
        return (
            f"{self.seconds:.2f} s ({wait.slot}, process {wait.pid}, "
            f"from {wait.began:.3f} to {wait.ended:.3f})"
        )


def longest_waits(evidence: Evidence) -> dict[bool, Excess]:
    """Give the longest wait beyond a mint, in sound conditions (False) and under attack (True)."""
    longest: dict[bool, Excess] = {}
    for wait in evidence.waits:
        excess = _excess(evidence, wait)
        known = longest.get(excess.is_attacked)
        if known is None or excess.seconds > known.seconds:
            longest[excess.is_attacked] = excess

    return longest


def stuck(evidence: Evidence, scale: Scale) -> Iterator[str]:
    """Tell who waited longer than the bound."""
    bounds = {False: scale.longest_wait, True: scale.longest_wait_attacked}
    for is_attacked, excess in longest_waits(evidence).items():
        if excess.seconds > bounds[is_attacked]:
            yield f"a wait of {excess} beyond the mint; the bound is {bounds[is_attacked]:.1f} s"


def _excess(evidence: Evidence, wait: Wait) -> Excess:
    span = wait.began, wait.ended
    mints = [(mint.begun, mint.ended) for mint in evidence.mints[wait.slot]]
    own_stops = [(since, until) for since, until in evidence.stops.get(wait.pid, ())]
    stops = [(since, until) for spans in evidence.stops.values() for since, until in spans]
    folder = [(since, until + _TICK) for _, (since, until) in evidence.folder]
    alone = [(since, until) for since, until in evidence.alone[wait.slot]]
    seconds = wait.ended - wait.began - _covered(span, mints + own_stops)

    return Excess(
        seconds=max(0.0, seconds),
        wait=wait,
        is_attacked=any(_touch(span, other) for other in (*stops, *folder, *alone)),
    )


def _covered(span: Span, others: Iterable[Span]) -> float:
    """Give how much of a span lies in at least one of the others."""
    total, reached = 0.0, span[0]
    for since, until in sorted(others):
        since, until = max(since, reached), min(until, span[1])
        if until > since:
            total += until - since
            reached = until

    return total


def _touch(one: Span, other: Span) -> bool:
    return one[0] <= other[1] and other[0] <= one[1]


# --- everything acked is read ----------------------------------------------------------------


def misread(
    evidence: Evidence, slot: str, chunks: Iterable[dict[str, Any]], totals: dict[int, int]
) -> Iterator[str]:
    """Tell what is missing, twice or out of order in a stream as its reader sees it.

    Args:
        evidence: What is acked.
        slot: The stream's slot.
        chunks: What was read.
        totals: By writer, how many records it was to write.
    """
    read: dict[str, list[int]] = {}
    written: dict[int, set[int]] = {writer: set() for writer in totals}
    for chunk in chunks:
        read.setdefault(chunk["sheet"], []).append(chunk["n"])
        written[chunk["writer"]].add(chunk["n"])
    for sheet, (its_slot, start) in evidence.sheets.items():
        if its_slot == slot:
            numbers = read.pop(sheet, [])
            yield from _misread_sheet(sheet, slot, numbers, start, evidence.acked.get(sheet, start))
    for sheet in read:
        yield f"{slot}: records of a writer {sheet} that nobody opened"
    for writer, total in totals.items():
        if written[writer] != set(range(total)):
            missing = sorted(set(range(total)) ^ written[writer])
            yield f"{slot}: writer {writer} was to write {total} records; off by {missing[:10]}"


def _misread_sheet(
    sheet: str, slot: str, numbers: list[int], start: int, acked: int
) -> Iterator[str]:
    if numbers != list(range(start, start + len(numbers))):
        yield f"{slot}: {sheet} is not read in order, each once: {_oddity(numbers, start)}"
    if start + len(numbers) < acked:
        yield f"{slot}: {sheet} had {acked - start} records acked, {len(numbers)} are read"


def _oddity(numbers: list[int], start: int) -> str:
    place = next(place for place, number in enumerate(numbers) if number != start + place)

    return f"record {numbers[place]} where {start + place} should be"
