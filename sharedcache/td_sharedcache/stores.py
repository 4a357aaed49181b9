"""Which store a slot uses: the shared one, or for a while this process's own.

A folder that is full, read-only, gone or locked by a stopped process costs sharing, never a run. A
slot that meets one goes alone: its rows live in memory, under the same rules, until the shared
store answers again.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from td_sharedcache.credential import Credential
from td_sharedcache.errors import StoreBusyError, StoreDownError
from td_sharedcache.event import Reporter
from td_sharedcache.forks import GUARD
from td_sharedcache.row import Live, Row
from td_sharedcache.slot import Slot
from td_sharedcache.store import MemoryStore, Store

_CROWDED = 1024
"""Slots alone after which those are forgotten that nobody has asked for in a while."""


class Stores:
    """The shared store, and what the slots that must do without it have instead.

    Args:
        shared: The store of all processes.
        try_again_every: Seconds between two attempts to come back to it.
        is_usable: Whether a row has a credential that may be used.
        reporter: Told of each slot that goes alone, and of each that comes back.
        now: The monotonic time.
    """

    def __init__(
        self,
        shared: Store,
        *,
        try_again_every: float,
        is_usable: Callable[[Row], bool],
        reporter: Reporter,
        now: Callable[[], float] = monotonic,
    ) -> None:
        self.shared = shared
        self.memory = MemoryStore()
        self._try_again_every = try_again_every
        self._is_usable = is_usable
        self._reporter = reporter
        self._now = now
        self._alone: dict[Slot, float] = {}

    def of(self, slot: Slot) -> Store:
        """Give the store to use for a slot right now."""
        again_at = self._alone.get(slot)
        if again_at is None:
            return self.shared
        if self._now() < again_at or not self._rejoin(slot):
            return self.memory

        return self.shared

    def go_alone(self, slot: Slot, down: StoreDownError, held: Credential | None) -> None:
        """Do without the shared store for one slot, until it is time to try it again.

        Args:
            slot: The slot.
            down: Why.
            held: A credential of the slot to go on with.
        """
        with GUARD:
            is_news = slot not in self._alone
            if len(self._alone) >= _CROWDED:
                self._forget_idle()
            self._alone[slot] = self._now() + self._try_again_every
        if not is_news:
            return

        if held is not None:
            self.memory.put(slot, Live(credential=held, refresh_at=held.refresh_at))
        self._reporter.tell("cache.degraded", "warning", slot, reason=str(down))

    def _forget_idle(self) -> None:
        now = self._now()
        for slot in [slot for slot, again_at in self._alone.items() if again_at <= now]:
            del self._alone[slot]
            self.memory.forget(slot)

    def _rejoin(self, slot: Slot) -> bool:
        """Go back to the shared store, taking along what was minted without it."""
        mine = self.memory.load(slot)
        try:
            row = self.shared.load(slot)
            if self._is_usable(mine) and not self._is_usable(row):
                self.shared.replace(slot, row.id, mine)
        except (StoreBusyError, StoreDownError):
            self._alone[slot] = self._now() + self._try_again_every
            return False

        self._alone.pop(slot, None)
        self.memory.forget(slot)
        self._reporter.tell("cache.restored", "info", slot)

        return True
