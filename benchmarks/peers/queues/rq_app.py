"""RQ with Redis; with BENCH_SAFE, three retries."""

from __future__ import annotations

import os

from redis import Redis
from rq import Queue, Retry

from peers.queues import record

_queue = Queue(connection=Redis.from_url(os.environ["BENCH_REDIS"]))


def noop() -> None:
    record.record()


def nap() -> None:
    record.nap()


def enqueue(name: str) -> None:
    retry = Retry(max=3) if os.environ.get("BENCH_SAFE") else None
    _queue.enqueue(f"peers.queues.rq_app.{name}", retry=retry, result_ttl=0)
