from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from td_sharedcache import CredentialCache, Notice
from td_worker import streams
from td_worker.context import AttemptInfo, Execution, RunInfo, TaskInfo, executing
from td_worker.control_plane import ControlPlane
from td_worker.stream_store import StreamStore
from td_worker.streams import blocking
from td_worker.streams.client import StreamClient
from td_worker.streams.policy import StreamLimits
from td_worker.testing import FakePlatform, LoopThread, run_platform
from tests.gateway_process import GatewayProcess, start_gateway

RUN = "run_1"
END = "the end of what is read"
"""Appended and read up to: silence as the end would depend on how fast the machine is."""


def read_all(key: str = "default", *, start_index: int | None = None) -> list[Any]:
    """Return all chunks of `run_1`'s stream so far, in a plain thread."""
    blocking.append(key, END)
    found: list[Any] = []
    with closing(blocking.read(RUN, key, start_index=start_index, timeout=60)) as reading:
        for chunk in reading:
            if chunk == END:
                return found
            found.append(chunk)
    raise AssertionError("the stream ended before its last record")


async def read_all_async(key: str = "default", *, start_index: int | None = None) -> list[Any]:
    """Return the same on an event loop."""
    await streams.append(key, END)
    return await read_to_end(streams.read(RUN, key, start_index=start_index, timeout=60))


async def read_to_end(reading: AsyncGenerator[Any, None]) -> list[Any]:
    """Return the chunks before the mark."""
    found: list[Any] = []
    async with aclosing(reading):
        async for chunk in reading:
            if chunk == END:
                return found
            found.append(chunk)
    raise AssertionError("the stream ended before its last record")


@pytest.fixture
def platform() -> Iterator[FakePlatform]:
    """A control plane and stream store in memory."""
    with run_platform() as platform:
        yield platform


@pytest.fixture
def execution(platform: FakePlatform) -> Iterator[Execution]:
    """The test is the code of `run_1`, a root run."""
    with platform.execution(run_id=RUN) as execution:
        yield execution


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[GatewayProcess]:
    """A real gateway process that knows `run_1`."""
    folder = tmp_path / "data"
    folder.mkdir()
    with start_gateway(folder) as process:
        process.add_run(RUN)
        yield process


@dataclass(frozen=True)
class Worker:
    """The streams half of one worker process: its own cache over the shared folder."""

    client: StreamClient
    thread: LoopThread
    notices: list[Notice]

    @contextmanager
    def executing(self, run_id: str = RUN) -> Iterator[Execution]:
        """Let the block be the code of a run; drains its streams on leaving."""
        execution = Execution(
            run=RunInfo(id=run_id),
            attempt=AttemptInfo(number=1),
            task=TaskInfo(id="test"),
            streams=self.client,
        )
        with executing(execution):
            yield execution
        self.thread.run(self.client.drain(execution, 60))


@contextmanager
def start_worker(
    gateway: GatewayProcess, credentials: Path, limits: StreamLimits | None = None
) -> Iterator[Worker]:
    """Yield what a worker process has, here in a thread: the real cache and real HTTP."""
    notices: list[Notice] = []
    with LoopThread() as thread:
        plane = ControlPlane(gateway.url, gateway.secret_key)
        cache = CredentialCache(
            credentials,
            origin=gateway.url,
            api_key=gateway.secret_key,
            minter=plane,
            on_notice=notices.append,
        )
        store = StreamStore()
        client = StreamClient(
            thread.loop, cache=cache, store=store, control_plane=plane, limits=limits
        )
        try:
            yield Worker(client, thread, notices)
        finally:
            for ending in (client.close(), store.close(), plane.close()):
                thread.run(ending)
            cache.close()


@pytest.fixture
def worker(gateway: GatewayProcess, tmp_path: Path) -> Iterator[Worker]:
    """One worker of the gateway's host."""
    with start_worker(gateway, tmp_path / "credentials") as worker:
        yield worker
