"""Dramatiq with Redis."""

from __future__ import annotations

import os

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from peers.queues import record

dramatiq.set_broker(RedisBroker(url=os.environ["BENCH_REDIS"]))


@dramatiq.actor
def noop() -> None:
    record.record()


@dramatiq.actor
def nap() -> None:
    record.nap()


def enqueue(name: str) -> None:
    {"noop": noop, "nap": nap}[name].send()
