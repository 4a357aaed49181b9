"""The embedded platform: a control plane that mints credentials, and a stream store.

``Platform`` owns all of it: one SQLite file, its writer and its readers.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from td_runtime.gateway.errors import StoreUnavailableError
from td_runtime.gateway.journal import Journal
from td_runtime.gateway.platform.access import Access
from td_runtime.gateway.platform.api import Api
from td_runtime.gateway.platform.basins import Basins
from td_runtime.gateway.platform.channel_routes import ChannelRoutes
from td_runtime.gateway.platform.control_plane import ControlPlane
from td_runtime.gateway.platform.faults import Faults
from td_runtime.gateway.platform.holder import BASIN, Gate
from td_runtime.gateway.platform.input_routes import InputRoutes
from td_runtime.gateway.platform.issued_tokens import IssuedTokens
from td_runtime.gateway.platform.issuer import Issuer
from td_runtime.gateway.platform.mints import MintLog
from td_runtime.gateway.platform.parts import Parts
from td_runtime.gateway.platform.run_batches import RunBatches
from td_runtime.gateway.platform.runs import Runs
from td_runtime.gateway.platform.session_routes import SessionRoutes
from td_runtime.gateway.platform.session_runs import SessionRuns
from td_runtime.gateway.platform.sessions import Sessions
from td_runtime.gateway.platform.storage import Storage
from td_runtime.gateway.platform.stream_config import RETENTION_S
from td_runtime.gateway.platform.stream_store import StreamStore
from td_runtime.gateway.platform.streams import Streams
from td_runtime.gateway.platform.subscription import Subscriptions
from td_runtime.gateway.platform.tokens import Tokens
from td_runtime.gateway.platform.uploads import Uploads
from td_runtime.gateway.platform.waitpoint_routes import WaitpointRoutes
from td_runtime.gateway.platform.waitpoints import Waitpoints
from td_runtime.gateway.supervisor_link import SupervisorLink

if TYPE_CHECKING:
    from td_runtime.gateway.platform.run_api import RunApi

__all__ = ["Platform"]


class Platform:
    """The embedded platform on the running event loop.

    Attributes:
        stopping: Set when the gateway ends: open reads break off.
    """

    def __init__(self, storage: Storage, data_dir: str) -> None:
        self.stopping = asyncio.Event()
        self.streams = Streams(storage)
        self.tokens = Tokens(storage, self.streams)
        self.basins = Basins(storage)
        self.issued = IssuedTokens(storage)
        self.mints = MintLog()
        self.faults = Faults()
        self.sessions = Sessions(storage)
        self.waitpoints = Waitpoints(storage)
        self.run_batches = RunBatches(storage)
        self.uploads = Uploads(Path(data_dir, "uploads"))
        self.supervisor = SupervisorLink(data_dir)
        self._storage = storage
        self._run_store = os.path.join(data_dir, "runs.db")
        self._runs = Runs(self._run_store)
        self._session_runs = SessionRuns(self.sessions, self._runs, self.supervisor)
        self._parts = Parts(self.streams)
        self._subscriptions = Subscriptions(self.streams, stopping=self.stopping)

    @classmethod
    def open(cls, data_dir: str) -> Platform:
        """Open the files of a data folder.

        Raises:
            StoreOpenError: The platform's own file cannot be opened.
        """
        return cls(Storage.open(os.path.join(data_dir, "platform.db")), data_dir)

    def control_plane(self, access: Access, *, endpoint: str) -> ControlPlane:
        """The application for ``/realtime/v1/streams``."""
        inputs = InputRoutes(
            access=access,
            runs=self._runs,
            parts=self._parts,
            subscriptions=self._subscriptions,
            waitpoints=self.waitpoints,
        )

        return ControlPlane(
            access=access,
            issuer=Issuer(self.tokens, endpoint=endpoint, basin=BASIN),
            runs=self._runs,
            streams=self.streams,
            parts=self._parts,
            inputs=inputs,
            subscriptions=self._subscriptions,
            mints=self.mints,
            faults=self.faults,
        )

    def channels(self, access: Access, *, endpoint: str, journal: Journal) -> ChannelRoutes:
        """The application for ``/realtime/v1/sessions``."""
        return ChannelRoutes(
            access=access,
            sessions=self.sessions,
            session_runs=self._session_runs,
            issuer=Issuer(self.tokens, endpoint=endpoint, basin=BASIN),
            parts=self._parts,
            subscriptions=self._subscriptions,
            waitpoints=self.waitpoints,
            mints=self.mints,
            faults=self.faults,
            journal=journal,
        )

    def api(self, access: Access) -> Api:
        """The application for ``/api``."""
        sessions = SessionRoutes(
            access=access,
            sessions=self.sessions,
            session_runs=self._session_runs,
            runs=self._runs,
            parts=self._parts,
        )
        waitpoints = WaitpointRoutes(
            access=access,
            waitpoints=self.waitpoints,
            runs=self._runs,
            sessions=self.sessions,
            parts=self._parts,
        )

        return Api(
            access=access,
            sessions=sessions,
            waitpoints=waitpoints,
            runs=lambda: self._run_api(access),
            faults=self.faults,
        )

    def _run_api(self, access: Access) -> RunApi:
        from td_runtime.gateway.platform.run_api import RunApi

        return RunApi(
            access=access,
            store=Path(self._run_store),
            link=self.supervisor,
            batches=self.run_batches,
            uploads=self.uploads,
        )

    def stream_store(self, *, secret_key: str) -> StreamStore:
        """The application for ``/v1``."""
        return StreamStore(
            gate=Gate(secret_key=secret_key, tokens=self.tokens, issued=self.issued),
            basins=self.basins,
            issued=self.issued,
            streams=self.streams,
            faults=self.faults,
            stopping=self.stopping,
        )

    async def expire(self) -> int:
        """Delete records past their retention, tokens past their life, and what nobody came for.

        Returns:
            How many records went.

        Raises:
            StoreUnavailableError: Some of it could not be deleted.
        """
        try:
            await self.tokens.forget_expired()
            await self.issued.forget_expired()
            await self.waitpoints.forget_old()
            await self.run_batches.forget_old()
            return await self.streams.expire(before_ms=int((time.time() - RETENTION_S) * 1000))
        finally:
            # Whatever the file says: they may be what has filled the disk.
            await self.uploads.forget_old()

    async def why_not_ready(self) -> str | None:
        """What keeps runs from being accepted and records from being stored; None if nothing."""
        from td_runtime.control import ControlRefusedError, NotRunningError
        from td_runtime.control_messages import GetStatus, StatusView

        try:
            await self._storage.write(lambda _: None)
            status = await self.supervisor.ask(GetStatus(), StatusView)
        except StoreUnavailableError as error:
            return f"the platform's file cannot be written: {error}"
        except (NotRunningError, ControlRefusedError) as error:
            return error.what

        return None if status.state == "running" else f"the supervisor is {status.state}"

    def stop(self) -> None:
        """Break off the open reads, so that the server can finish."""
        self.stopping.set()
        self.streams.wake_all()

    def close(self) -> None:
        """Close the files; what was accepted is committed first."""
        self.streams.close()
        self.tokens.close()
        self.sessions.close()
        self.waitpoints.close()
        self.run_batches.close()
        self.supervisor.close()
        self._runs.close()
        self._storage.close()
