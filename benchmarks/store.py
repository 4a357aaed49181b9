"""The run store alone: how many runs it accepts, hands out and records, every commit on the disk.

Run it with `make bench`, or `.venv/bin/python benchmarks/store.py`. Supervisor, workers and logs
are not in it; the seconds are of the wall clock, so the disk's syncs are.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import structlog
from _figures import medians, print_table

from td_runtime.store import (
    Completed,
    Finish,
    NewRun,
    Place,
    QueueLimits,
    Run,
    RunQuery,
    RunStore,
    Status,
)
from td_runtime.store import open_store as open_run_store

ROUNDS = 3
RUNS = 20_000
HISTORY = 100_000
BATCH = 500
PLACES = 256
NO_LIMITS = {"task/a": QueueLimits()}
ONE_A_KEY = {"task/a": QueueLimits(per_key=1)}


@contextmanager
def store_path() -> Iterator[Path]:
    # On the disk of the working folder: /tmp may be memory, where a sync costs nothing.
    with tempfile.TemporaryDirectory(prefix=".td-bench-", dir=Path.cwd()) as folder:
        yield Path(folder, "runs.db")


def rate(count: int, measure: Callable[[RunStore], Awaitable[float]]) -> float:
    """Return how many a second: *measure* gives the seconds."""

    async def run(path: Path) -> float:
        async with open_run_store(path) as store:
            return count / await measure(store)

    with store_path() as path:
        return asyncio.run(run(path))


async def accept(store: RunStore, new: NewRun, *, clients: int, batch: int, count: int) -> float:
    """Accept `count` runs from so many clients that wait for each answer."""

    async def trigger() -> None:
        for _ in range(count // clients // batch):
            await store.accept([new] * batch)

    started = time.perf_counter()
    await asyncio.gather(*[trigger() for _ in range(clients)])

    return time.perf_counter() - started


async def drain(store: RunStore, new: NewRun, queues: dict[str, QueueLimits]) -> float:
    """Hand out and finish RUNS runs, outcomes and the next claim in one commit."""
    await fill(store, new, RUNS)
    started = time.perf_counter()
    while runs := await store.claim([Place("w", 1)] * PLACES, queues=queues, now=4e9):
        finish(store, runs)

    return time.perf_counter() - started


def finish(store: RunStore, runs: Iterable[Run]) -> None:
    """Record that they completed, as the supervisor does what it hears of in one moment."""
    store.finish_all([Finish(run.id, 1, "w", Completed(b"1"), 0, run.task) for run in runs])


async def drain_keys(store: RunStore) -> float:
    """The same with 200 concurrency keys of which each has one place."""
    keys = [NewRun(task="a", payload=b"1", concurrency_key=f"k{n % 200}") for n in range(RUNS)]
    for at in range(0, RUNS, BATCH):
        await store.accept(keys[at : at + BATCH])
    done = 0
    started = time.perf_counter()
    while done < RUNS:
        runs = await store.claim([Place("w", 1)] * PLACES, queues=ONE_A_KEY, now=4e9)
        finish(store, runs)
        done += len(runs)

    return time.perf_counter() - started


async def fill(store: RunStore, new: NewRun, count: int) -> None:
    for _ in range(count // BATCH):
        await store.accept([new] * BATCH)


async def look(store: RunStore, count: int) -> float:
    """Read pages and counts beside a history of HISTORY runs."""
    await fill(store, NewRun(task="a", payload=b"1", tags=("t",)), HISTORY)
    while runs := await store.claim([Place("w", 1)] * 1000, queues=NO_LIMITS, now=4e9):
        finish(store, runs)
    started = time.perf_counter()
    for _ in range(count):
        await store.counts()
        await store.find(RunQuery(statuses=frozenset({Status.COMPLETED}), limit=50))

    return time.perf_counter() - started


async def one_by_one(store: RunStore, count: int) -> float:
    return await accept(store, NewRun(task="a", payload=b"1"), clients=1, batch=1, count=count)


def sync_rate(count: int) -> float:
    """What the disk itself can do: small appends, each synced."""
    with store_path() as path, path.open("wb") as file:
        started = time.perf_counter()
        for _ in range(count):
            file.write(b"x" * 4096)
            file.flush()
            os.fdatasync(file.fileno())

        return count / (time.perf_counter() - started)


def main() -> None:
    # On a busy disk every other commit is slow enough to be an event.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    plain = NewRun(task="a", payload=b'{"n":1}')
    full = NewRun(task="a", payload=b'{"n":1}', tags=("x", "y"), ttl=1e6, concurrency_key="k")
    many = partial(accept, clients=16, batch=BATCH, count=64_000)
    sides: dict[str, Callable[[], float]] = {
        "one sync of the disk": lambda: sync_rate(200),
        "accept, one client, one at a time": lambda: rate(300, lambda s: one_by_one(s, 300)),
        "accept, 16 clients, one at a time": lambda: rate(
            8_000, lambda s: accept(s, plain, clients=16, batch=1, count=8_000)
        ),
        f"accept, 16 clients, batches of {BATCH}": lambda: rate(64_000, lambda s: many(s, plain)),
        "the same with tags, ttl and key": lambda: rate(64_000, lambda s: many(s, full)),
        "hand out and finish": lambda: rate(RUNS, lambda s: drain(s, plain, NO_LIMITS)),
        "the same with 200 keys, one place each": lambda: rate(RUNS, drain_keys),
        f"counts and a page, {HISTORY:,} runs of history": lambda: rate(
            500, lambda s: look(s, 500)
        ),
    }
    rows = [[name, f"{each:,.0f}"] for name, each in medians(sides, rounds=ROUNDS).items()]
    print_table("The run store", ["what", "a second"], rows)


if __name__ == "__main__":
    main()
