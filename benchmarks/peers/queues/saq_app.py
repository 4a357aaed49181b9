"""SAQ with Redis."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from saq import Queue

from peers.queues import record

queue = Queue.from_url(os.environ["BENCH_REDIS"])
_loop = asyncio.new_event_loop() if os.environ.get("BENCH_CLIENT") else None


async def noop(_: Any) -> None:
    record.record()


async def nap(_: Any) -> None:
    record.nap()


settings = {"queue": queue, "functions": [noop, nap], "concurrency": 10}


def enqueue(name: str) -> None:
    assert _loop is not None
    _loop.run_until_complete(queue.enqueue(name))
