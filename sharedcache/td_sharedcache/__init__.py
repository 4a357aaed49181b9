"""Credentials that several processes share; knows neither HTTP nor tasks."""

from typing import TYPE_CHECKING

from td_sharedcache.credential import Credential, Grant
from td_sharedcache.errors import (
    CacheDirectoryError,
    CacheError,
    CacheUnavailableError,
    CredentialBackoffError,
    CredentialUnchangedError,
    MintError,
)
from td_sharedcache.event import CacheEvent
from td_sharedcache.info import CredentialInfo
from td_sharedcache.minter import AsyncMinter, Minter
from td_sharedcache.notice import Notice
from td_sharedcache.policy import Clock, Policy
from td_sharedcache.slot import Slot

if TYPE_CHECKING:
    from td_sharedcache.cache import CredentialCache
else:

    def __getattr__(name: str) -> object:
        # Brings SQLite, asyncio and cryptography: a command line that only needs the words and the
        # errors of this package starts in half the time without.
        if name != "CredentialCache":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from td_sharedcache.cache import CredentialCache

        return CredentialCache


__all__ = [
    "AsyncMinter",
    "CacheDirectoryError",
    "CacheError",
    "CacheEvent",
    "CacheUnavailableError",
    "Clock",
    "Credential",
    "CredentialBackoffError",
    "CredentialCache",
    "CredentialInfo",
    "CredentialUnchangedError",
    "Grant",
    "MintError",
    "Minter",
    "Notice",
    "Policy",
    "Slot",
]
