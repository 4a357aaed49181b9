"""The credentials that this process may use without looking any further."""

from __future__ import annotations

from collections import OrderedDict

from td_sharedcache.credential import Credential
from td_sharedcache.forks import GUARD
from td_sharedcache.policy import Clock, Policy
from td_sharedcache.slot import Slot

_BANS = 1024
"""How many dead credentials a process remembers."""
_LATER = 1.0
"""Seconds until a look that could not be had is tried again."""

Entry = tuple[float, Credential, float]
"""Monotonic time of the next look, the credential, monotonic end of its life."""


class LocalCredentials:
    """What this process knows: which credentials are good, and which it has seen fail."""

    def __init__(self, policy: Policy, clock: Clock) -> None:
        self._policy = policy
        self._clock = clock
        self.entries: dict[Slot, Entry] = {}
        """In the order of the last look. Read without a lock by every hit; changed under it."""
        self.era = 0
        """Grows with every reset; what was looked up in an earlier era is not kept."""
        self._bans: OrderedDict[str, None] = OrderedDict()

    def keep(self, credential: Credential, era: int) -> None:
        """Use a credential until it is time to look again, unless it died on its way here."""
        now = self._clock.monotonic()
        left = credential.expires_at - self._clock.wall()
        with GUARD:
            if era != self.era or credential.id in self._bans:
                return
            look_at = now + min(left, self._policy.revalidate_every)
            # To the end of the order. Every slot in use comes by here at each look, so the first
            # ones are those that nobody has used for the longest time; a hit moves nothing.
            self.entries.pop(credential.slot, None)
            self.entries[credential.slot] = (look_at, credential, now + left)
            while len(self.entries) > self._policy.l1_slots:
                del self.entries[next(iter(self.entries))]

    def keep_using(self, slot: Slot) -> Credential | None:
        """Go on with a credential that is due for a look which cannot be had right now."""
        now = self._clock.monotonic()
        with GUARD:
            credential = self.held(slot)
            if credential is not None:
                end = self.entries[slot][2]
                self.entries[slot] = (min(now + _LATER, end), credential, end)

        return credential

    def held(self, slot: Slot) -> Credential | None:
        """Give the credential of a slot if it has not run out, due for a look or not."""
        entry = self.entries.get(slot)

        return None if entry is None or entry[2] <= self._clock.monotonic() else entry[1]

    def drop(self, slot: Slot) -> None:
        """Forget a slot whose credential turned out to be gone."""
        with GUARD:
            self.entries.pop(slot, None)

    def ban(self, slot: Slot, credential_id: str) -> Credential | None:
        """Never use a credential again; gives it back if it was in use."""
        with GUARD:
            self._bans[credential_id] = None
            if len(self._bans) > _BANS:
                self._bans.popitem(last=False)
            entry = self.entries.get(slot)
            if entry is None or entry[1].id != credential_id:
                return None
            del self.entries[slot]

        return entry[1]

    def is_banned(self, credential_id: str) -> bool:
        """Tell whether this process has seen a credential fail."""
        return credential_id in self._bans

    def drop_all(self) -> bool:
        """Forget every credential; tells whether there was one."""
        with GUARD:
            self.era += 1
            had_any = bool(self.entries)
            self.entries = {}

        return had_any
