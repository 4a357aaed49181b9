"""Huey, with Redis or with a SQLite file."""

from __future__ import annotations

import os

from huey import RedisHuey, SqliteHuey

from peers.queues import record

if os.environ.get("BENCH_SQLITE"):
    huey = SqliteHuey("bench", filename=os.environ["BENCH_SQLITE"], results=False)
else:
    huey = RedisHuey("bench", url=os.environ["BENCH_REDIS"], results=False)


@huey.task()
def noop() -> None:
    record.record()


@huey.task()
def nap() -> None:
    record.nap()


def enqueue(name: str) -> None:
    {"noop": noop, "nap": nap}[name]()
