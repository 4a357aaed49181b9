"""What may be shown of a shared credential."""

from __future__ import annotations

from dataclasses import dataclass

from td_sharedcache.row import Live
from td_sharedcache.slot import Slot


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialInfo:
    """One credential of the shared store, without its token; all times wall-clock seconds."""

    slot: Slot
    id: str
    minted_at: float
    expires_at: float
    refresh_at: float
    minted_by: int
    """Process id of whoever asked for it; 0 if that is not known."""
    used_at: float
    """When a process last read it, to the minute; reading from memory does not count."""

    @classmethod
    def of(cls, slot: Slot, live: Live, used_at: float) -> CredentialInfo:
        """Say of a row what is no secret."""
        return cls(
            slot=slot,
            id=live.id,
            minted_at=live.credential.minted_at,
            expires_at=live.credential.expires_at,
            refresh_at=live.refresh_at,
            minted_by=live.credential.minted_by,
            used_at=used_at,
        )
