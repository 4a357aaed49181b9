"""What a cache asks of whoever speaks to the control plane."""

from __future__ import annotations

from typing import Protocol

from td_sharedcache.credential import Grant
from td_sharedcache.slot import Slot


class AsyncMinter(Protocol):
    """Whoever asks the control plane, on an event loop."""

    async def mint(self, slot: Slot) -> Grant:
        """Send one PUT.

        It is cancelled at the mint deadline, and must have closed its connection when it returns.

        Raises:
            MintError: There is no grant; says whether and when to try again.
        """
        ...


class Minter(Protocol):
    """Whoever asks the control plane from a plain thread."""

    def mint(self, slot: Slot) -> Grant:
        """Send one PUT; must keep the mint deadline itself, since a thread cannot be cancelled.

        Raises:
            MintError: There is no grant; says whether and when to try again.
        """
        ...
