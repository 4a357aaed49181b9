"""Reads a run's stream as any reader would, through the control plane."""

from __future__ import annotations

import asyncio
from typing import Any

from td_worker.control_plane import ControlPlane
from td_worker.streams.reader import Subscription
from tests.runtime_process import RuntimeProcess


def read_stream(runtime: RuntimeProcess, run_id: str, key: str) -> list[Any]:
    """Return every chunk of a stream that nobody writes to any more, in order."""
    return asyncio.run(_read(runtime, run_id, key))


async def _read(runtime: RuntimeProcess, run_id: str, key: str) -> list[Any]:
    records = runtime.stats().records[f"{run_id}/{key}"]
    chunks: list[Any] = []
    async with ControlPlane(runtime.url, runtime.secret_key) as control_plane:
        subscription = Subscription(
            lambda cursor: control_plane.open_run_stream(
                run_id, key, last_event_id=cursor, timeout_s=60
            )
        )
        async for parts in subscription.batches():
            chunks += [part.chunk for part in parts if part.has_chunk]
            if int(parts[-1].id) + 1 >= records:
                break

    return chunks


def by_writer(chunks: list[Any]) -> dict[int, list[int]]:
    """Split chunks ``[writer, number]`` into each writer's numbers, in order."""
    found: dict[int, list[int]] = {}
    for writer, number in chunks:
        found.setdefault(writer, []).append(number)

    return found
