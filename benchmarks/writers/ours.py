"""One process that writes with td_worker: `python ours.py MODE COUNT OPTIONS`, OPTIONS as JSON.

It has what a worker has: a loop for task code, and a thread of its own with the appenders. Says
`ready`, waits for a line on standard input, writes, and prints what came of it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import structlog

from td_sharedcache import CredentialCache
from td_worker import chat, streams
from td_worker.context import AttemptInfo, Execution, RunInfo, TaskInfo, executing
from td_worker.control_plane import ControlPlane
from td_worker.stream_store import StreamStore
from td_worker.streams.client import StreamClient
from td_worker.testing import LoopThread

CHUNK = {"type": "text-delta", "id": "t", "delta": "a word or two "}

Note = Callable[[], None]
Write = Callable[[int, str, Note], Awaitable[None]]


async def awaited(count: int, key: str, _note: Note) -> None:
    """Await each append."""
    for _ in range(count):
        await streams.append(key, CHUNK)


async def at_once(count: int, key: str, note: Note) -> None:
    """Start all appends, then wait for them."""
    sent = [asyncio.ensure_future(streams.append(key, CHUNK)) for _ in range(count)]
    note()
    await asyncio.gather(*sent)


async def bulk(count: int, key: str, note: Note) -> None:
    """One writer."""
    async with streams.writer(key) as writer:
        for _ in range(count):
            await writer.write(CHUNK)
        note()


async def chat_awaited(count: int, key: str, _note: Note) -> None:
    """Write to a chat and wait for each ack."""
    async with chat.bind(key):
        for _ in range(count):
            await chat.response.write(CHUNK).wait()


async def chat_hot_loop(count: int, key: str, note: Note) -> None:
    """Write to a chat in a hot loop, and wait for the last ack."""
    async with chat.bind(key):
        for _ in range(count):
            written = await chat.response.write(CHUNK)
        note()
        await written.wait()


WRITES: dict[str, Write] = {
    write.__name__: write for write in (awaited, at_once, bulk, chat_awaited, chat_hot_loop)
}


@contextmanager
def worker(
    url: str, secret_key: str, credentials: str, store: StreamStore | None = None
) -> Iterator[StreamClient]:
    """Yield the stream client of a process like a worker's."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),  # the output is for the figures
    )
    store = store or StreamStore()
    with LoopThread() as thread:
        control_plane = ControlPlane(url, secret_key)
        cache = CredentialCache(
            Path(credentials), origin=url, api_key=secret_key, minter=control_plane
        )
        client = StreamClient(thread.loop, cache=cache, store=store, control_plane=control_plane)

        async def close() -> None:
            await client.close()
            await store.close()
            await control_plane.close()

        try:
            yield client
        finally:
            asyncio.run_coroutine_threadsafe(close(), thread.loop).result()
            cache.close()


def execution(client: StreamClient, run_id: str) -> Execution:
    """Return an attempt of this run."""
    return Execution(
        run=RunInfo(id=run_id),
        attempt=AttemptInfo(number=1),
        task=TaskInfo(id="benchmark"),
        streams=client,
    )


@asynccontextmanager
async def _warmed_up(write: Write, key: str) -> AsyncIterator[None]:
    await write(1, key, lambda: None)  # mints, and connects
    print("ready", flush=True)
    sys.stdin.readline()
    yield


async def measure(mode: str, count: int, key: str) -> dict[str, Any]:
    """Write, and return when that began and ended, and what CPU time it took."""
    write = WRITES[mode]
    enqueued: list[float] = []
    async with _warmed_up(write, key):
        cpu, began = time.process_time(), time.monotonic()
        await write(count, key, lambda: enqueued.append(time.monotonic()))
        ended = time.monotonic()

    return {
        "began": began,
        "enqueued": enqueued[0] if enqueued else None,
        "ended": ended,
        "cpu": time.process_time() - cpu,
    }


def main() -> None:
    mode, count, options = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
    run_id, key = options.pop("run_id"), options.pop("key")
    with worker(**options) as client, executing(execution(client, run_id)):
        print(json.dumps(asyncio.run(measure(mode, count, key))))


if __name__ == "__main__":
    main()
