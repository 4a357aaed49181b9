"""Taskiq with Redis: a list, which acknowledges nothing, or a stream."""

from __future__ import annotations

import asyncio
import os

from taskiq_redis import ListQueueBroker, RedisStreamBroker

from peers.queues import record

_kind = RedisStreamBroker if os.environ.get("BENCH_STREAM") else ListQueueBroker
broker = _kind(url=os.environ["BENCH_REDIS"])
_loop = asyncio.new_event_loop() if os.environ.get("BENCH_CLIENT") else None
if _loop is not None:
    _loop.run_until_complete(broker.startup())


@broker.task
async def noop() -> None:
    record.record()


@broker.task
async def nap() -> None:
    record.nap()


def enqueue(name: str) -> None:
    assert _loop is not None
    _loop.run_until_complete({"noop": noop, "nap": nap}[name].kiq())
