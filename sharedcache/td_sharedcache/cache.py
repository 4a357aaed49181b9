"""One credential a slot for all processes of a host.

Looked for in three places: a dict of this process (a hit costs a look-up and a compare), the store
that all processes share, and the control plane, which is asked under the slot's lock by one caller
while everybody else waits for the answer.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from td_sharedcache import forks
from td_sharedcache.credential import Credential
from td_sharedcache.disk import DiskStore
from td_sharedcache.errors import StoreBusyError, StoreDownError
from td_sharedcache.event import CacheEvent, Reporter, call_safely
from td_sharedcache.flight import (
    Flight,
    FlightAbandonedError,
    Steps,
    T,
    drive,
    drive_blocking,
    refuse_inside_mint,
)
from td_sharedcache.forks import GUARD
from td_sharedcache.info import CredentialInfo
from td_sharedcache.local import LocalCredentials
from td_sharedcache.minter import AsyncMinter, Minter
from td_sharedcache.minting import Minting
from td_sharedcache.notice import Notice
from td_sharedcache.policy import Clock, Policy
from td_sharedcache.seal import Seal
from td_sharedcache.slot import Slot
from td_sharedcache.store import Store


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
        self._on_notice = on_notice
        self._policy = policy or Policy()
        self._clock = clock or Clock()
        self._monotonic = self._clock.monotonic
        self._reporter = Reporter(on_event)
        self._hits = 0
        self._shared = self._open_store(directory, Seal(origin=origin, api_key=api_key))
        self._start_afresh()
        forks.watch(self)

    def peek(self, slot: Slot) -> Credential | None:
        """Give the credential if this process has it and need not look again.

        Touches neither disk, lock nor loop.
        """
        entry = self._local.entries.get(slot)
        if entry is None or entry[0] <= self._monotonic():
            return None

        self._hits += 1
        return entry[1]

    async def get(self, slot: Slot) -> Credential:
        """Give the slot's credential, minting it if no process has one.

        A caller that is cancelled leaves the mint to the others.

        Raises:
            CredentialBackoffError: Minting failed a moment ago; nothing was sent.
            MintError: The control plane gave none.
        """
        found = self.peek(slot)
        while found is None:
            found, flight, is_mine = self._find_or_join(slot)
            if flight is None:
                continue
            if is_mine:
                flight.launch(self._minter, self._policy.mint_deadline)
            await flight.wait(self._policy.longest_flight)
            found = self._outcome(slot, flight)

        return found

    def get_blocking(self, slot: Slot) -> Credential:
        """Do what `get` does, in a thread that may block."""
        found = self.peek(slot)
        while found is None:
            found, flight, is_mine = self._find_or_join(slot)
            if flight is None:
                continue
            if is_mine:
                flight.fly_blocking(self._minter, self._policy.mint_deadline)
            else:
                flight.wait_blocking(self._policy.longest_flight)
            found = self._outcome(slot, flight)

        return found

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
        steps = self._minting.evict(slot, credential_id, reason=reason, refused=refused)

        return self._noted(await self._drive(steps), slot, credential_id, reason)

    def evict_blocking(
        self, slot: Slot, credential_id: str, *, reason: str, refused: bool = False
    ) -> bool:
        """Do what `evict` does, in a thread that may block."""
        steps = self._minting.evict(slot, credential_id, reason=reason, refused=refused)

        return self._noted(self._drive_blocking(steps), slot, credential_id, reason)

    def receive(self, notice: Notice) -> bool:
        """Take note of what another process evicted.

        Returns:
            Whether this process had been using it.
        """
        if notice.slot is None or notice.credential_id is None:
            return self._minting.drop_all()

        return self._local.ban(notice.slot, notice.credential_id) is not None

    async def reset(self) -> None:
        """Drop every credential of the namespace, in all processes; the next calls mint.

        Raises:
            CacheUnavailableError: The shared credentials could not be reached.
        """
        await self._drive(self._minting.reset())
        self._notify(None, None, "reset")

    def reset_blocking(self) -> None:
        """Do what `reset` does, in a thread that may block."""
        self._drive_blocking(self._minting.reset())
        self._notify(None, None, "reset")

    async def list(self) -> tuple[CredentialInfo, ...]:
        """Say which credentials the processes share, tokens left out.

        Raises:
            CacheUnavailableError: The shared credentials could not be reached.
        """
        return await self._drive(self._minting.list())

    def list_blocking(self) -> tuple[CredentialInfo, ...]:
        """Do what `list` does, in a thread that may block."""
        return self._drive_blocking(self._minting.list())

    def close(self) -> None:
        """Close the shared file. A later call opens it again."""
        self._shared.close()

    @property
    def stats(self) -> dict[str, int]:
        """How often each event happened in this process, and hits as "l1_hits"."""
        return {**self._reporter.counts, "l1_hits": self._hits}

    def before_fork(self) -> None:
        """Nothing of the cache itself is open."""

    def after_fork_in_child(self) -> None:
        """Start as a new process: the parent's flights will never land here."""
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._flights: dict[Slot, Flight[Credential]] = {}
        self._refreshes: dict[Slot, Flight[None]] = {}
        self._local = LocalCredentials(self._policy, self._clock)
        self._minting = Minting(
            self._shared,
            self._local,
            policy=self._policy,
            clock=self._clock,
            reporter=self._reporter,
            max_age=self._max_age,
        )

    def _open_store(self, directory: Path, seal: Seal) -> Store:
        return DiskStore(
            directory, seal, clock=self._clock, reporter=self._reporter, policy=self._policy
        )

    def _find_or_join(
        self, slot: Slot
    ) -> tuple[Credential | None, Flight[Credential] | None, bool]:
        """Give a credential that needs no mint, or the flight to wait for and whether to start it.

        Raises:
            CredentialBackoffError: It is too soon to mint.
        """
        refuse_inside_mint()
        flight = self._flights.get(slot)
        if flight is not None and not flight.end_if_orphaned():
            return None, flight, False
        found, seen = self._look(slot)
        if found is not None:
            return found, None, False

        with GUARD:
            flight = self._flights.get(slot)
            if flight is not None:
                return None, flight, False
            flight = Flight(self._minting.fetch(slot, seen), _retiring(self._flights, slot))
            self._flights[slot] = flight

        return None, flight, True

    def _look(self, slot: Slot) -> tuple[Credential | None, str | None]:
        """Give what the store has, and the id of the row that was seen, if it could be."""
        try:
            row, found = self._minting.look(slot)
        except StoreBusyError:
            return self._local.keep_using(slot), None
        if found is not None and self._minting.is_due(row):
            self._refresh_ahead(slot)

        return found, row.id

    def _refresh_ahead(self, slot: Slot) -> None:
        """Refresh beside the caller, who goes on with the credential there is."""
        with GUARD:
            flight = self._refreshes.get(slot)
            if flight is not None and not flight.end_if_orphaned():
                return
            flight = Flight(self._minting.refresh(slot), _retiring(self._refreshes, slot))
            self._refreshes[slot] = flight
        try:
            flight.launch(self._minter, self._policy.mint_deadline)
        except RuntimeError:
            work = (self._minter, self._policy.mint_deadline)
            threading.Thread(target=flight.fly_blocking, args=work, daemon=True).start()

    def _outcome(self, slot: Slot, flight: Flight[Credential]) -> Credential | None:
        """Give what a flight brought; None to start over."""
        if not flight.has_landed():
            _retiring(self._flights, slot)(flight)
            self._minting.go_alone(slot, StoreDownError("a mint in this process is stuck"))
            return None
        try:
            return flight.result()
        except FlightAbandonedError:
            return None

    def _noted(self, hit: bool, slot: Slot, credential_id: str, reason: str) -> bool:
        if hit:
            self._notify(slot, credential_id, reason)

        return hit

    def _notify(self, slot: Slot | None, credential_id: str | None, reason: str) -> None:
        if self._on_notice is None:
            return

        now = self._clock.wall()
        notice = Notice(
            slot=slot, credential_id=credential_id, reason=reason, pid=os.getpid(), at=now
        )
        call_safely(self._on_notice, notice)

    async def _drive(self, steps: Steps[T]) -> T:
        return await drive(steps, self._minter, self._policy.mint_deadline)

    def _drive_blocking(self, steps: Steps[T]) -> T:
        return drive_blocking(steps, self._minter, self._policy.mint_deadline)


def _retiring(flights: dict[Slot, Flight[T]], slot: Slot) -> Callable[[Flight[T]], None]:
    def retire(landed: Flight[Any]) -> None:
        with GUARD:
            if flights.get(slot) is landed:
                del flights[slot]

    return retire
