"""Deletes finished runs that are too old or too many, in the background of the supervisor."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

import structlog

from td_runtime.config import StoreConfig
from td_runtime.store import RunStore, StoreFullError

__all__ = ["Retention"]

log = structlog.get_logger()

_PERIOD: Final = 60.0
"""Seconds between two looks at the history."""

_PAUSE: Final = 0.05
"""Seconds between two steps: runs that are accepted meanwhile wait for one step at most."""


class Retention:
    """What of the history goes, and when. Belongs to the supervisor's loop.

    Args:
        store: The run store.
        config: How long, and how many, finished runs are kept.
        period: Seconds between two sweeps.
        pause: Seconds between two steps of a sweep.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        store: RunStore,
        config: StoreConfig,
        *,
        period: float = _PERIOD,
        pause: float = _PAUSE,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._config = config
        self._period = period
        self._pause = pause
        self._clock = clock

    def reload(self, config: StoreConfig) -> None:
        """Go by this config from the next step on."""
        self._config = config

    async def run(self) -> None:
        """Sweep again and again, for ever."""
        while True:
            await asyncio.sleep(self._period)
            await self.sweep()

    async def sweep(self) -> int:
        """Delete all that may go now, in small steps; return how many runs that were."""
        deleted = 0
        try:
            while True:
                step = await self._store.prune(
                    finished_before=self._clock() - self._config.retention_age,
                    keep=self._config.retention_count,
                )
                deleted += step.deleted
                if not step.more:
                    break
                await asyncio.sleep(self._pause)
        except StoreFullError:
            pass  # deleting needs room for its log, too: the next sweep goes on
        if deleted:
            log.info("store.pruned", runs=deleted)

        return deleted
