"""The embedded platform: a control plane that mints credentials, and a stream store.

``Platform`` owns all of it: one SQLite file, its writer and its readers.
"""

from __future__ import annotations

import asyncio
import os
import time

from td_runtime.gateway.platform.basins import Basins
from td_runtime.gateway.platform.control_plane import ControlPlane, Issue
from td_runtime.gateway.platform.faults import Faults
from td_runtime.gateway.platform.holder import BASIN, Gate
from td_runtime.gateway.platform.mints import MintLog
from td_runtime.gateway.platform.runs import Runs
from td_runtime.gateway.platform.storage import Storage
from td_runtime.gateway.platform.stream_config import RETENTION_S
from td_runtime.gateway.platform.stream_store import StreamStore
from td_runtime.gateway.platform.streams import Streams
from td_runtime.gateway.platform.tokens import Tokens

__all__ = ["Platform"]


class Platform:
    """The embedded platform on the running event loop.

    Attributes:
        stopping: Set when the gateway ends: open reads break off.
    """

    def __init__(self, storage: Storage, runs: Runs) -> None:
        self.stopping = asyncio.Event()
        self.streams = Streams(storage)
        self.tokens = Tokens(storage, self.streams)
        self.basins = Basins(storage)
        self.mints = MintLog()
        self.faults = Faults()
        self._storage = storage
        self._runs = runs

    @classmethod
    def open(cls, data_dir: str) -> Platform:
        """Open the files of a data folder.

        Raises:
            StoreOpenError: The platform's own file cannot be opened.
        """
        storage = Storage.open(os.path.join(data_dir, "platform.db"))
        return cls(storage, Runs(os.path.join(data_dir, "runs.db")))

    def control_plane(self, *, secret_key: str, endpoint: str) -> ControlPlane:
        """The application for ``/realtime/v1/streams``."""
        return ControlPlane(
            secret_key=secret_key,
            issue=Issue(endpoint=endpoint, basin=BASIN),
            runs=self._runs,
            streams=self.streams,
            tokens=self.tokens,
            mints=self.mints,
            faults=self.faults,
            stopping=self.stopping,
        )

    def stream_store(self, *, secret_key: str) -> StreamStore:
        """The application for ``/v1``."""
        return StreamStore(
            gate=Gate(secret_key=secret_key, tokens=self.tokens),
            basins=self.basins,
            streams=self.streams,
            faults=self.faults,
            stopping=self.stopping,
        )

    async def expire(self) -> int:
        """Delete records past their retention and tokens past their life.

        Returns:
            How many records went.
        """
        await self.tokens.forget_expired()
        return await self.streams.expire(before_ms=int((time.time() - RETENTION_S) * 1000))

    def stop(self) -> None:
        """Break off the open reads, so that the server can finish."""
        self.stopping.set()
        self.streams.wake_all()

    def close(self) -> None:
        """Close the files; what was accepted is committed first."""
        self.streams.close()
        self.tokens.close()
        self._runs.close()
        self._storage.close()
