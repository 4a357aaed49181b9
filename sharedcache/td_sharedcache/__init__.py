"""Credentials that several processes share; knows neither HTTP nor tasks."""

from td_sharedcache.cache import CredentialCache
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
from td_sharedcache.flight import AsyncMinter, Minter
from td_sharedcache.notice import Notice
from td_sharedcache.policy import Clock, Policy
from td_sharedcache.slot import Slot

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
    "CredentialUnchangedError",
    "Grant",
    "MintError",
    "Minter",
    "Notice",
    "Policy",
    "Slot",
]
