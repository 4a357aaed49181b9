"""What a task has in its worker process, without a worker: the Python half of these tests."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, aclosing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from td_sharedcache import CredentialCache
from td_worker import streams
from td_worker.context import AttemptInfo, Execution, RunInfo, TaskInfo, executing
from td_worker.control_plane import ControlPlane
from td_worker.stream_store import StreamStore
from td_worker.streams.client import StreamClient
from td_worker.testing import LoopThread
from tests.gateway_process import GatewayProcess


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonTask:
    """A task of one run; its methods are what its code would do."""

    execution: Execution

    @property
    def run_id(self) -> str:
        """The run that the task belongs to."""
        return self.execution.run.id

    def at_work(self) -> AbstractContextManager[object]:
        """Return what makes the code within part of the task."""
        return executing(self.execution)

    async def write(self, key: str, chunks: Iterable[Any]) -> None:
        """Write the chunks to a stream of the task's own run; they are durable on return."""
        with executing(self.execution):
            async with streams.writer(key) as writer:
                for chunk in chunks:
                    await writer.write(chunk)

    async def read(self, key: str, count: int, **options: Any) -> list[Any]:
        """Return the first `count` chunks of a stream of the task's own run, waiting for them.

        Args:
            key: The stream's key.
            count: How many; fewer if the stream ends before.
            options: What `streams.read` takes.
        """
        chunks: list[Any] = []
        with executing(self.execution):
            async with aclosing(streams.read(self.run_id, key, **options)) as reader:
                async for chunk in reader:
                    chunks.append(chunk)
                    if len(chunks) == count:
                        break

        return chunks


@contextmanager
def python_task(gateway: GatewayProcess, run_id: str, credentials: Path) -> Iterator[PythonTask]:
    """Yield a task of a run that the gateway knows."""
    gateway.add_run(run_id)
    with _runtime_thread() as loop, _client(loop, gateway, credentials) as client:
        execution = Execution(
            run=RunInfo(id=run_id),
            attempt=AttemptInfo(number=1),
            task=TaskInfo(id="interop"),
            streams=client,
        )
        yield PythonTask(execution=execution)


@contextmanager
def _runtime_thread() -> Iterator[asyncio.AbstractEventLoop]:
    """Run a second loop, as a worker process does, and stop it at the end."""
    with LoopThread() as thread:
        yield thread.loop


@contextmanager
def _client(
    loop: asyncio.AbstractEventLoop, gateway: GatewayProcess, credentials: Path
) -> Iterator[StreamClient]:
    control_plane = ControlPlane(gateway.url, gateway.secret_key)
    cache = CredentialCache(
        credentials, origin=gateway.url, api_key=gateway.secret_key, minter=control_plane
    )
    store = StreamStore()
    client = StreamClient(loop, cache=cache, store=store, control_plane=control_plane)

    async def close() -> None:
        await client.close()
        await store.close()
        await control_plane.close()

    try:
        yield client
    finally:
        asyncio.run_coroutine_threadsafe(close(), loop).result()
        cache.close()
