"""From diaries to facts: which process minted what, when, and what it had been told before."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf

from tests.chaos.diary import Entry

Span = tuple[float, float]
"""From and to, wall-clock seconds."""


@dataclass(slots=True, kw_only=True)
class Put:
    """One PUT as its client saw it: from before it was sent to after its end."""

    slot: str
    pid: int
    sent: float
    ended: float = inf
    status: int | None = None
    """Of the answer; None when there was none."""
    since: float
    """When its mint began: the slot's lock was taken before that."""
    is_alone: bool = False
    """Whether its process did without the shared file at that time."""

    @property
    def is_good(self) -> bool:
        """Whether it was answered with a credential."""
        return self.status is not None and self.status < 300


@dataclass(slots=True, kw_only=True)
class Mint:
    """One call of a minter, all its PUTs included."""

    slot: str
    pid: int
    begun: float
    ended: float = inf
    is_good: bool = False
    is_alone: bool = False
    """Whether its process did without the shared file, when it began or when it ended."""
    credential_id: str | None = None
    """Known once the cache has said what it made of the answer."""
    is_used: bool = False
    puts: list[Put] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """A call of `get` that took a while."""

    slot: str
    pid: int
    began: float
    ended: float


class Evidence:
    """All that is known of a campaign; takes lines as they come."""

    def __init__(self) -> None:
        self.mints: dict[str, list[Mint]] = defaultdict(list)
        self.puts: dict[str, list[Put]] = defaultdict(list)
        self.evictions: dict[str, float] = {}
        """When somebody first asked for the eviction of a credential, by its id."""
        self.evicted: dict[tuple[str, str], list[float]] = defaultdict(list)
        """When an eviction took a credential from all, by slot and id."""
        self.alone: dict[str, list[list[float]]] = defaultdict(list)
        """When some process did without the shared file, by slot; the last may be open."""
        self.refused_rows: dict[str, list[float]] = defaultdict(list)
        self.waits: list[Wait] = []
        self.stops: dict[int, list[list[float]]] = defaultdict(list)
        self.killed: dict[int, float] = {}
        self.folder: list[tuple[str, Span]] = []
        """Attacks on the folder, with their kinds."""
        self.replaced: list[Span] = []
        """When the shared file became another one: some time between the two."""
        self.acked: dict[str, int] = {}
        """By sheet: records below this number are acked."""
        self.sheets: dict[str, tuple[str, int]] = {}
        """By sheet: its slot, and the number of its first record."""
        self.counts: dict[str, int] = defaultdict(int)
        self._open_puts: dict[tuple[int, int], Put] = {}
        self._open_mints: dict[tuple[int, int], Mint] = {}
        self._untold: dict[tuple[int, str], list[Mint]] = defaultdict(list)
        """By process and slot: mints that succeeded, of which the cache has not said so yet."""
        self._open_alone: dict[tuple[int, str], list[float]] = {}

    def take(self, entries: Iterable[Entry]) -> None:
        """Take lines; those of one process in their order."""
        for entry in entries:
            self.counts[entry["what"]] += 1
            handler = _HANDLERS.get(entry["what"])
            if handler is not None:
                handler(self, entry)

    # --- the harness ---------------------------------------------------------------------------

    def _killed(self, entry: Entry) -> None:
        victim, at = entry["victim"], entry["at"]
        self.killed[victim] = at
        for puts in (self._open_puts, self._open_mints):
            for (pid, _), one in puts.items():
                if pid == victim:
                    one.ended = min(one.ended, at)
        for (pid, _), span in self._open_alone.items():
            if pid == victim:
                span[1] = min(span[1], at)
        for span in self.stops.get(victim, ()):
            span[1] = min(span[1], at)

    def _stopped(self, entry: Entry) -> None:
        self.stops[entry["victim"]].append([entry["at"], inf])

    def _continued(self, entry: Entry) -> None:
        self.stops[entry["victim"]][-1][1] = entry["at"]

    def _attacked(self, entry: Entry) -> None:
        self.folder.append((entry["kind"], (entry["began"], entry["at"])))

    def _replaced(self, entry: Entry) -> None:
        self.replaced.append((entry["since"], entry["at"]))

    # --- the writers ---------------------------------------------------------------------------

    def _put_sent(self, entry: Entry) -> None:
        put = Put(slot=entry["slot"], pid=entry["pid"], sent=entry["at"], since=entry["at"])
        self._bury(put)
        self.puts[put.slot].append(put)
        self._open_puts[put.pid, entry["put"]] = put
        mint = self._open_mints[put.pid, entry["mint"]]
        mint.puts.append(put)
        put.since, put.is_alone = mint.begun, mint.is_alone

    def _put_ended(self, entry: Entry) -> None:
        put = self._open_puts.pop((entry["pid"], entry["put"]))
        put.ended = entry["at"]
        put.status = entry.get("status")

    def _mint_begun(self, entry: Entry) -> None:
        mint = Mint(slot=entry["slot"], pid=entry["pid"], begun=entry["at"])
        mint.is_alone = (mint.pid, mint.slot) in self._open_alone
        self._bury(mint)
        self.mints[mint.slot].append(mint)
        self._open_mints[mint.pid, entry["mint"]] = mint

    def _mint_ended(self, entry: Entry) -> None:
        mint = self._open_mints.pop((entry["pid"], entry["mint"]))
        mint.ended = entry["at"]
        mint.is_good = entry["ok"]
        if mint.is_good:
            self._untold[mint.pid, mint.slot].append(mint)

    def _bury(self, one: Put | Mint) -> None:
        # The harness's diary may have been read before this one.
        one.ended = self.killed.get(one.pid, inf)

    def _minted(self, entry: Entry) -> None:
        mint = self._untold[entry["pid"], entry["slot"]].pop(0)
        mint.credential_id = entry["credential_id"]
        mint.is_alone |= (mint.pid, mint.slot) in self._open_alone
        mint.is_used = entry["used"]

    def _eviction_begun(self, entry: Entry) -> None:
        known = self.evictions.get(entry["credential_id"], inf)
        self.evictions[entry["credential_id"]] = min(known, entry["at"])

    def _evicted(self, entry: Entry) -> None:
        self.evicted[entry["slot"], entry["credential_id"]].append(entry["at"])

    def _degraded(self, entry: Entry) -> None:
        if "slot" not in entry:
            return
        span = [entry["at"], self.killed.get(entry["pid"], inf)]
        self.alone[entry["slot"]].append(span)
        self._open_alone[entry["pid"], entry["slot"]] = span

    def _restored(self, entry: Entry) -> None:
        span = self._open_alone.pop((entry["pid"], entry.get("slot", "")), None)
        if span is not None:
            span[1] = entry["at"]

    def _row_refused(self, entry: Entry) -> None:
        self.refused_rows[entry["slot"]].append(entry["at"])

    def _waited(self, entry: Entry) -> None:
        self.waits.append(
            Wait(slot=entry["slot"], pid=entry["pid"], began=entry["began"], ended=entry["at"])
        )

    def _sheet_opened(self, entry: Entry) -> None:
        self.sheets[entry["sheet"]] = entry["slot"], entry["start"]

    def _records_acked(self, entry: Entry) -> None:
        self.acked[entry["sheet"]] = entry["upto"]


_HANDLERS = {
    "writer.killed": Evidence._killed,
    "writer.stopped": Evidence._stopped,
    "writer.continued": Evidence._continued,
    "folder.attacked": Evidence._attacked,
    "file.replaced": Evidence._replaced,
    "put.sent": Evidence._put_sent,
    "put.answered": Evidence._put_ended,
    "put.broken": Evidence._put_ended,
    "mint.begun": Evidence._mint_begun,
    "mint.ended": Evidence._mint_ended,
    "credential.minted": Evidence._minted,
    "credential.refreshed": Evidence._minted,
    "evict.begun": Evidence._eviction_begun,
    "credential.evicted": Evidence._evicted,
    "cache.degraded": Evidence._degraded,
    "cache.restored": Evidence._restored,
    "credential.row_refused": Evidence._row_refused,
    "get.ended": Evidence._waited,
    "sheet.opened": Evidence._sheet_opened,
    "records.acked": Evidence._records_acked,
}
