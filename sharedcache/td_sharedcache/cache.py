"""One credential a slot for all processes of a host.

Looked for in three places: a dict of this process (a hit costs a look-up and a compare), the store
that all processes share, and the control plane, which is asked under the slot's lock by one caller
while everybody else waits for the answer.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from td_sharedcache import forks
from td_sharedcache.credential import Credential
from td_sharedcache.disk import DiskStore
from td_sharedcache.errors import (
    CacheUnavailableError,
    CredentialBackoffError,
    CredentialUnchangedError,
    MintError,
    StoreBusyError,
    StoreDownError,
)
from td_sharedcache.flight import (
    AsyncMinter,
    Flight,
    FlightAbandonedError,
    Minter,
    Steps,
    T,
    drive,
    drive_blocking,
    refuse_inside_mint,
)
from td_sharedcache.forks import GUARD
from td_sharedcache.notice import CacheEvent, Level, Notice
from td_sharedcache.policy import Clock, Policy, poll_pauses
from td_sharedcache.row import Gap, Live, Row, fingerprint
from td_sharedcache.seal import Seal
from td_sharedcache.slot import Slot
from td_sharedcache.store import MemoryStore, Store

_BANS = 1024
"""How many dead credentials a process remembers."""
_CROWDED = 1024
"""Entries after which a process drops those it would have to look up again anyway."""

_Entry = tuple[float, Credential, float]
_log = logging.getLogger(__name__)


class CredentialCache:
    """The credentials of one control plane and API key, shared by every process of a user.

    Usable from any thread, any event loop, and on both sides of a fork.

    Args:
        directory: The folder that all processes share; created 0700 if missing.
        origin: The control plane's URL, part of the namespace.
        api_key: Names the namespace and seals its rows; not kept.
        minter: Asks the control plane. An `AsyncMinter` that is bound to one loop must be used
            through `get` on that loop.
        max_age: Seconds a credential may be used for.
        on_event: Told of everything but hits in this process. Must not block.
        on_notice: Told once, in one process of the host, of each evicted credential.
        policy: The limits.
        clock: Where the time comes from.

    Raises:
        CacheDirectoryError: The folder may be read by others, or is on a network file system.
    """

    def __init__(
        self,
        directory: Path,
        *,
        origin: str,
        api_key: str,
        minter: AsyncMinter | Minter,
        max_age: float = 6 * 3600,
        on_event: Callable[[CacheEvent], None] | None = None,
        on_notice: Callable[[Notice], None] | None = None,
        policy: Policy | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._minter = minter
        self._max_age = max_age
        self._on_event = on_event
        self._on_notice = on_notice
        self._policy = policy or Policy()
        self._clock = clock or Clock()
        self._monotonic = self._clock.monotonic
        self._counts: Counter[str] = Counter()
        self._hits = 0
        self._forget_everything()
        self._shared = self._open_store(directory, Seal(origin=origin, api_key=api_key))
        forks.watch(self)

    def peek(self, slot: Slot) -> Credential | None:
        """Give the credential if this process has it and need not look again.

        Touches neither disk, lock nor loop.
        """
        entry = self._entries.get(slot)
        if entry is None or entry[0] <= self._monotonic():
            return None

        self._hits += 1
        return entry[1]

    async def get(self, slot: Slot) -> Credential:
        """Give the slot's credential, minting it if no process has one.

        Raises:
            CredentialBackoffError: Minting failed a moment ago; nothing was sent.
            MintError: The control plane gave none.
        """
        found = self.peek(slot)
        while found is None:
            answer, is_mine = self._find_or_join(slot)
            if not isinstance(answer, Flight):
                return answer
            if is_mine:
                answer.launch(self._minter, self._policy.mint_deadline)
            await answer.wait(self._longest_flight)
            found = self._outcome(slot, answer)

        return found

    def get_blocking(self, slot: Slot) -> Credential:
        """Do what `get` does, in a thread that may block."""
        found = self.peek(slot)
        while found is None:
            answer, is_mine = self._find_or_join(slot)
            if not isinstance(answer, Flight):
                return answer
            if is_mine:
                answer.fly_blocking(self._minter, self._policy.mint_deadline)
            else:
                answer.wait_blocking(self._longest_flight)
            found = self._outcome(slot, answer)

        return found

    @property
    def stats(self) -> dict[str, int]:
        """How often each event happened in this process, and hits as "l1_hits"."""
        return {**self._counts, "l1_hits": self._hits}

    async def evict(
        self, slot: Slot, credential_id: str, *, reason: str, refused: bool = False
    ) -> bool:
        """Drop a credential that failed, if it is still the slot's current one.

        This process never uses it again, whatever happens to the shared one.

        Args:
            slot: What the credential was for.
            credential_id: The `id` of the one that failed.
            reason: Goes into the event and the notice.
            refused: The stream store refused the token itself, so a mint that returns the same
                token is an error.

        Returns:
            Whether it was this very call that took it from all processes.
        """
        return await self._drive(self._evict(slot, credential_id, reason, refused))

    def evict_blocking(
        self, slot: Slot, credential_id: str, *, reason: str, refused: bool = False
    ) -> bool:
        """Do what `evict` does, in a thread that may block."""
        return self._drive_blocking(self._evict(slot, credential_id, reason, refused))

    def receive(self, notice: Notice) -> bool:
        """Take note of what another process evicted.

        Returns:
            Whether this process had been using it.
        """
        if notice.slot is None or notice.credential_id is None:
            return self._drop_all()

        return self._ban(notice.slot, notice.credential_id) is not None

    async def reset(self) -> None:
        """Drop every credential of the namespace, in all processes; the next calls mint.

        Raises:
            CacheUnavailableError: The shared credentials could not be reached.
        """
        await self._drive(self._reset())

    def reset_blocking(self) -> None:
        """Do what `reset` does, in a thread that may block."""
        self._drive_blocking(self._reset())

    def close(self) -> None:
        """Close the shared file. A later call opens it again."""
        self._shared.close()

    def before_fork(self) -> None:
        """Nothing of the cache itself is open."""

    def after_fork_in_child(self) -> None:
        """Start as a new process: the parent's flights will never land here."""
        self._forget_everything()

    def _forget_everything(self) -> None:
        self._entries: dict[Slot, _Entry] = {}
        self._era = 0
        self._bans: OrderedDict[str, None] = OrderedDict()
        self._flights: dict[Slot, Flight] = {}
        self._memory = MemoryStore()
        self._alone: dict[Slot, float] = {}
        self._refreshing: set[Slot] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def _keep(self, credential: Credential, era: int) -> None:
        """Use a credential until it is time to look again, unless it died on its way here."""
        now = self._monotonic()
        left = credential.expires_at - self._clock.wall()
        with GUARD:
            if era != self._era or credential.id in self._bans:
                return
            if len(self._entries) >= _CROWDED:
                self._entries = {s: e for s, e in self._entries.items() if e[0] > now}
            until = now + min(left, self._policy.revalidate_every)
            self._entries[credential.slot] = (until, credential, now + left)

    def _keep_using(self, slot: Slot) -> Credential | None:
        """Go on with a credential that is due for a look which cannot be had right now."""
        now = self._monotonic()
        with GUARD:
            entry = self._entries.get(slot)
            if entry is None or entry[2] <= now:
                return None
            self._entries[slot] = (min(now + 1.0, entry[2]), entry[1], entry[2])

        return entry[1]

    def _ban(self, slot: Slot, credential_id: str) -> Credential | None:
        with GUARD:
            self._bans[credential_id] = None
            if len(self._bans) > _BANS:
                self._bans.popitem(last=False)
            entry = self._entries.get(slot)
            if entry is None or entry[1].id != credential_id:
                return None
            del self._entries[slot]

        return entry[1]

    def _drop_all(self) -> bool:
        with GUARD:
            self._era += 1
            had_any = bool(self._entries)
            self._entries = {}
            self._memory.clear()

        return had_any

    def _is_usable(self, row: Row) -> bool:
        if not isinstance(row, Live) or row.id in self._bans:
            return False
        credential = row.credential

        return self._policy.is_usable(
            credential.minted_at, credential.expires_at, self._clock.wall()
        )

    def _find_or_join(self, slot: Slot) -> tuple[Credential | Flight, bool]:
        """Give a credential that needs no mint, or the flight to wait for and whether to start it.

        Raises:
            CredentialBackoffError: It is too soon to mint.
        """
        refuse_inside_mint()
        flight = self._flights.get(slot)
        if flight is not None and not flight.end_if_orphaned():
            return flight, False
        found, seen = self._look(slot)
        if found is not None:
            return found, False

        with GUARD:
            flight = self._flights.get(slot)
            if flight is not None:
                return flight, False
            flight = Flight(self._fetch(slot, seen), lambda landed: self._retire(slot, landed))
            self._flights[slot] = flight

        return flight, True

    def _look(self, slot: Slot) -> tuple[Credential | None, str | None]:
        """Look into the store once, without waiting.

        Returns:
            The credential if there is one, and the id of the row that was seen, if it was.
        """
        era = self._era
        try:
            row = self._store_of(slot).load(slot)
        except StoreBusyError:
            return self._keep_using(slot), None
        except StoreDownError as down:
            self._go_alone(slot, down)
            row = self._memory.load(slot)

        return self._judge(slot, row, row.id, era), row.id

    def _judge(self, slot: Slot, row: Row, seen: str | None, era: int) -> Credential | None:
        """Decide what a row means to a caller that came when the row's id was `seen`.

        Returns:
            The credential to use; None if it is time to mint.

        Raises:
            MintError: The flight this caller waited for has failed, in whatever process.
        """
        if isinstance(row, Live):
            if not self._is_usable(row):
                return None
            self._keep(row.credential, era)
            self._tell("credential.shared", "debug", slot, credential_id=row.id)
            return row.credential

        self._entries.pop(slot, None)
        if row.failure is not None and row.id != seen:
            raise row.failure.to_error()
        left = row.pause_left(self._policy, self._clock.wall())
        if left > 0:
            because = row.failure.message if row.failure else "its credentials keep being evicted"
            self._tell("credential.mint_backed_off", "debug", slot, seconds=round(left, 3))
            raise CredentialBackoffError(slot, seconds=left, until=row.until, because=because)

        return None

    def _outcome(self, slot: Slot, flight: Flight) -> Credential | None:
        if not flight.has_landed():
            self._retire(slot, flight)
            self._go_alone(slot, StoreDownError("a mint in this process is stuck"))
            return None
        try:
            return flight.result()
        except FlightAbandonedError:
            return None

    def _retire(self, slot: Slot, flight: Flight) -> None:
        with GUARD:
            if self._flights.get(slot) is flight:
                del self._flights[slot]

    @property
    def _longest_flight(self) -> float:
        policy = self._policy

        return policy.lock_wait + policy.mint_deadline + 2 * policy.store_wait

    def _fetch(self, slot: Slot, seen: str | None) -> Steps[Credential]:
        """What a flight does, with the shared store if that is possible."""
        try:
            return (yield from self._fetch_from(self._store_of(slot), slot, seen))
        except StoreDownError as down:
            self._go_alone(slot, down)

        return (yield from self._fetch_from(self._memory, slot, None))

    def _fetch_from(self, store: Store, slot: Slot, seen: str | None) -> Steps[Credential]:
        waited_since = self._monotonic()
        for pause in poll_pauses():
            with store.stripe(slot) as held:
                # Read again under the lock: whoever held it before us was probably minting.
                era = self._era
                row = yield from self._patiently(lambda: store.load(slot))
                seen = row.id if seen is None else seen
                found = self._judge(slot, row, seen, era)
                if found is None and held:
                    found = yield from self._mint(store, slot, row, era)
            if found is not None:
                return found
            self._check_wait(slot, waited_since)
            yield pause

        raise AssertionError("poll_pauses never ends")

    def _mint(self, store: Store, slot: Slot, row: Row, era: int) -> Steps[Credential | None]:
        """Send the PUT and install its answer; the slot's lock is held.

        Returns:
            The new credential, or None if the row was replaced meanwhile and the credential
            must not be used.
        """
        gap = row if isinstance(row, Gap) else self._gap_after(row)
        started = self._clock.wall()
        try:
            credential = yield from self._ask(slot, gap, started)
        except MintError as error:
            refused = "" if isinstance(error, CredentialUnchangedError) else gap.refused
            failed = gap.failed(self._policy, self._clock.wall(), error, refused=refused)
            yield from self._install(store, slot, row.id, failed)
            self._tell_failed(slot, error, failed)
            raise

        if not (yield from self._install(store, slot, row.id, gap.filled(credential))):
            return None
        self._keep(credential, era)
        took = self._clock.wall() - started
        self._tell("credential.minted", "info", slot, credential_id=credential.id, seconds=took)

        return credential

    def _ask(self, slot: Slot, gap: Gap, started: float) -> Steps[Credential]:
        grant = yield slot
        if grant is None:
            raise MintError(f"minting {slot} gave nothing")
        if gap.refused and fingerprint(grant.access_token) == gap.refused:
            self._tell("credential.remint_unchanged", "error", slot)
            raise CredentialUnchangedError(slot)

        return Credential.of(
            grant,
            slot,
            minted_at=started,
            max_age=self._max_age,
            freshness=self._policy.freshness(),
        )

    def _gap_after(self, live: Live) -> Gap:
        """Give the gap of a credential that ran out, or that only this process knows is dead."""
        if live.id in self._bans:
            return live.evicted(self._policy, self._clock.wall(), refused=False)

        return Gap(id=live.id, at=live.at, until=0.0)

    def _install(self, store: Store, slot: Slot, expected: str, row: Row) -> Steps[bool]:
        """Put a row into the store; a store that fails now costs sharing, not the answer."""
        try:
            return (yield from self._patiently(lambda: store.replace(slot, expected, row)))
        except StoreDownError as down:
            self._go_alone(slot, down)
            self._memory.put(slot, row)

        return True

    def _patiently(self, work: Callable[[], T]) -> Steps[T]:
        """Do something with a store, waiting while other processes use it."""
        until = self._monotonic() + self._policy.store_wait
        for pause in poll_pauses():
            try:
                return work()
            except StoreBusyError as busy:
                if self._monotonic() >= until:
                    raise StoreDownError("the store's own lock is held by somebody else") from busy
            yield pause

        raise AssertionError("poll_pauses never ends")

    def _check_wait(self, slot: Slot, since: float) -> None:
        waited = self._monotonic() - since
        if waited < self._policy.lock_wait:
            return

        self._tell("lock.timed_out", "warning", slot, seconds=round(waited, 3))
        raise StoreDownError("another process holds the slot's lock beyond its bound")

    def _evict(self, slot: Slot, credential_id: str, reason: str, refused: bool) -> Steps[bool]:
        # Banned before anything else: from here on no path of this process leads back to it.
        mine = self._ban(slot, credential_id)
        store = self._store_of(slot)
        try:
            hit = yield from self._cut(store, slot, credential_id, refused)
        except StoreDownError as down:
            self._go_alone(slot, down)
            hit = False
            if mine is not None:
                live = Live(credential=mine, refresh_at=mine.refresh_at)
                gap = live.evicted(self._policy, self._clock.wall(), refused=refused)
                self._memory.put(slot, gap)
        name = "credential.evicted" if hit else "credential.eviction_refused"
        level: Level = "info" if hit else "debug"
        self._tell(name, level, slot, credential_id=credential_id, reason=reason)
        if hit and store is self._shared:
            self._notify(slot, credential_id, reason)

        return hit and store is self._shared

    def _cut(self, store: Store, slot: Slot, credential_id: str, refused: bool) -> Steps[bool]:
        row = yield from self._patiently(lambda: store.load(slot))
        if not isinstance(row, Live) or row.id != credential_id:
            return False
        gap = row.evicted(self._policy, self._clock.wall(), refused=refused)

        return (yield from self._patiently(lambda: store.replace(slot, credential_id, gap)))

    def _reset(self) -> Steps[None]:
        self._drop_all()
        try:
            yield from self._patiently(self._shared.clear)
        except StoreDownError as down:
            raise CacheUnavailableError(
                f"the shared credentials could not be reset: {down}. "
                "Check the folder named by [credentials] dir and try again"
            ) from down
        # Once more: a look that began before the shared rows were gone may have ended since.
        self._drop_all()
        self._tell("credential.reset", "info")
        self._notify(None, None, "reset")

    def _store_of(self, slot: Slot) -> Store:
        """Give the store to use for a slot right now."""
        again_at = self._alone.get(slot)
        if again_at is None:
            return self._shared
        if self._monotonic() < again_at or not self._rejoin(slot):
            return self._memory

        return self._shared

    def _go_alone(self, slot: Slot, down: StoreDownError) -> None:
        """Do without the shared store for one slot, until it is time to try it again."""
        with GUARD:
            is_news = slot not in self._alone
            self._alone[slot] = self._monotonic() + self._policy.revalidate_every
            entry = self._entries.get(slot)
        if is_news:
            if entry is not None:
                live = Live(credential=entry[1], refresh_at=entry[1].refresh_at)
                self._memory.put(slot, live)
            self._tell("cache.degraded", "warning", slot, reason=str(down))

    def _rejoin(self, slot: Slot) -> bool:
        """Go back to the shared store, taking along what was minted without it."""
        mine = self._memory.load(slot)
        try:
            row = self._shared.load(slot)
            if self._is_usable(mine) and not self._is_usable(row):
                self._shared.replace(slot, row.id, mine)
        except (StoreBusyError, StoreDownError):
            self._alone[slot] = self._monotonic() + self._policy.revalidate_every
            return False

        self._alone.pop(slot, None)
        self._memory.forget(slot)
        self._tell("cache.restored", "info", slot)

        return True

    def _open_store(self, directory: Path, seal: Seal) -> Store:
        return DiskStore(directory, seal, clock=self._clock, tell=self._report)

    async def _drive(self, steps: Steps[T]) -> T:
        return await drive(steps, self._minter, self._policy.mint_deadline)

    def _drive_blocking(self, steps: Steps[T]) -> T:
        return drive_blocking(steps, self._minter, self._policy.mint_deadline)

    def _notify(self, slot: Slot | None, credential_id: str | None, reason: str) -> None:
        notice = Notice(
            slot=slot,
            credential_id=credential_id,
            reason=reason,
            pid=os.getpid(),
            at=self._clock.wall(),
        )
        _call(self._on_notice, notice)

    def _tell_failed(self, slot: Slot, error: MintError, gap: Gap) -> None:
        self._tell(
            "credential.mint_failed",
            "warning",
            slot,
            error=str(error),
            status=error.status,
            retryable=error.retryable,
            failures=gap.failures,
            retry_in=round(max(0.0, gap.until - gap.at), 3),
        )

    def _tell(self, name: str, level: Level, slot: Slot | None = None, **fields: Any) -> None:
        if slot is not None:
            fields = {"slot": str(slot), **fields}
        self._report(CacheEvent(name=name, level=level, fields=fields))

    def _report(self, event: CacheEvent) -> None:
        self._counts[event.name] += 1
        _call(self._on_event, event)


def _call(handler: Callable[[T], None] | None, argument: T) -> None:
    if handler is None:
        return
    try:
        handler(argument)
    except Exception:  # noqa: BLE001  it is somebody else's code
        # Telling comes after doing: a broken handler must not undo a mint.
        _log.exception("a handler of the credential cache failed")
