"""What the control plane hands out for one slot."""

# msgspec reads the annotations of these classes, so they must not be postponed.
import os
import secrets
from dataclasses import dataclass

from td_sharedcache.slot import Slot


class Secret(str):
    """A string that shows itself as `'***'` wherever it is only looked at."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """The answer to one mint."""

    access_token: str
    """Masked in the repr, and so in rendered tracebacks."""
    basin: str
    stream: str
    endpoint: str
    """Base URL including the API path, without a trailing slash."""
    flush_interval: float
    """Seconds."""
    max_retries: int
    version: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "access_token", Secret(self.access_token))


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential(Grant):
    """A grant with an identity and a lifetime, all times wall-clock seconds.

    Two mints never share an `id`, even if the control plane returned the same token twice.
    """

    id: str
    slot: Slot
    minted_at: float
    """When the PUT was sent, so that a slow answer never lengthens a life."""
    expires_at: float
    refresh_at: float
    minted_by: int = 0
    """Process id of whoever asked for it; 0 if that was not written down."""

    @classmethod
    def of(
        cls, grant: Grant, slot: Slot, *, minted_at: float, max_age: float, freshness: float
    ) -> "Credential":
        """Give a grant its identity.

        Args:
            grant: What the control plane answered.
            slot: What it was asked for.
            minted_at: When it was asked.
            max_age: Seconds until the credential must not be used any more.
            freshness: The share of `max_age` after which a refresh is due, at most 1.
        """
        return cls(
            access_token=grant.access_token,
            basin=grant.basin,
            stream=grant.stream,
            endpoint=grant.endpoint,
            flush_interval=grant.flush_interval,
            max_retries=grant.max_retries,
            version=grant.version,
            id=secrets.token_hex(8),
            slot=slot,
            minted_at=minted_at,
            expires_at=minted_at + max_age,
            refresh_at=minted_at + max_age * freshness,
            minted_by=os.getpid(),
        )
