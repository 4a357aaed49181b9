"""How one batch gets acked: renew the credential, back off, try again, or say why not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

from td_sharedcache.credential import Credential
from td_sharedcache.errors import CacheError
from td_sharedcache.slot import Slot
from td_worker.errors import (
    StreamStoreAuthError,
    StreamStoreBusyError,
    StreamStoreError,
    StreamStoreUnreachableError,
)
from td_worker.stream_store import Ack, Appended
from td_worker.streams.policy import StreamLimits, retry_delay

log = structlog.get_logger()

_DEFAULT_FLUSH_INTERVAL = 0.1
_MAX_RENEWALS = 8
"""Refused credentials in a row for one batch, however stale; a bound against endless refusal."""


class Credentials(Protocol):
    """What the write path asks of the credential cache."""

    def peek(self, slot: Slot) -> Credential | None:
        """Return the credential at hand, without any I/O."""
        ...

    async def get(self, slot: Slot) -> Credential:
        """Return a credential, minted if need be."""
        ...

    async def evict(
        self, slot: Slot, credential_id: str, *, reason: str, refused: bool = False
    ) -> bool:
        """Remove the slot's credential if it is still that one."""
        ...


class Store(Protocol):
    """What the write path asks of the stream store."""

    async def append(self, credential: Credential, records: Sequence[Appended]) -> Ack:
        """Append one batch."""
        ...


@dataclass(slots=True)
class _Trouble:
    """What went wrong so far with one batch."""

    since: float | None = None
    """Monotonic seconds of the first failure."""
    retries: int = 0
    refused_at: float | None = None
    """Wall-clock seconds of the first refused credential."""
    refusals: int = 0

    def elapsed(self) -> float:
        if self.since is None:
            self.since = time.monotonic()

        return time.monotonic() - self.since


class Delivery:
    """
    The way of one slot's batches to the store, one batch at a time, on the runtime loop.

    The same bodies are sent until they are acked, so their envelope ids stay the same.
    """

    def __init__(
        self, slot: Slot, *, credentials: Credentials, store: Store, limits: StreamLimits
    ) -> None:
        self._slot = slot
        self._credentials = credentials
        self._store = store
        self._limits = limits
        self.credential: Credential | None = None
        """The credential of the last try."""

    @property
    def flush_interval(self) -> float:
        """Seconds that a batch gathers, as the control plane wants it."""
        return self.credential.flush_interval if self.credential else _DEFAULT_FLUSH_INTERVAL

    async def send(self, bodies: Sequence[Appended]) -> Ack:
        """
        Return the ack of `bodies`.

        Raises:
            StreamStoreError: The store refused for good, or the budget is spent.
            MintError, CacheError: There is no credential to be had.
        """
        trouble = _Trouble()
        while True:
            try:
                return await self._store.append(await self._current(trouble), bodies)
            except StreamStoreAuthError as error:
                await self._renew(error, trouble)
            except (StreamStoreBusyError, StreamStoreUnreachableError, CacheError) as error:
                await self._back_off(error, trouble)

    async def _current(self, trouble: _Trouble) -> Credential:
        # Asked anew for every try: the cache looks into what the host shares every few seconds, so
        # a retry also finds the credential that another worker has minted meanwhile.
        credential = self._credentials.peek(self._slot) or await self._credentials.get(self._slot)
        if trouble.refused_at is not None and credential is not self.credential:
            log.info("stream.credential_renewed", slot=self._slot, credential_id=credential.id)
        self.credential = credential

        return credential

    async def _renew(self, error: StreamStoreAuthError, trouble: _Trouble) -> None:
        """Evict the refused credential, unless it was minted after one had been refused."""
        refused = self.credential
        if refused is None or trouble.refusals >= _MAX_RENEWALS:
            raise error
        if trouble.refused_at is not None and refused.minted_at >= trouble.refused_at:
            raise error
        trouble.refused_at = trouble.refused_at or time.time()
        trouble.refusals += 1
        await self._credentials.evict(
            self._slot, refused.id, reason=f"append was answered {error.status}", refused=True
        )

    async def _back_off(self, error: StreamStoreError | CacheError, trouble: _Trouble) -> None:
        """Sleep before the next try; raise `error` when there is to be none."""
        if isinstance(error, CacheError) and not getattr(error, "retryable", False):
            raise error
        trouble.retries += 1
        delay = retry_delay(
            trouble.retries,
            limits=self._limits,
            retry_after=getattr(error, "retry_after", None),
            elapsed=trouble.elapsed(),
        )
        if delay is None:
            raise error
        log.warning(
            "stream.append_retried",
            slot=self._slot,
            retry=trouble.retries,
            delay_s=round(delay, 3),
            reason=str(error),
        )
        await asyncio.sleep(delay)
