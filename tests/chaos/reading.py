"""Reads back what was written, as any reader does."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from td_sharedcache import Slot
from td_worker.control_plane import ControlPlane
from td_worker.streams.reader import Subscription

_SILENCE_S = 2
"""A stream to which nobody writes any more has been read after so long a silence."""


def read_all(url: str, secret_key: str, slots: Sequence[Slot]) -> dict[Slot, list[Any]]:
    """Give the chunks of every slot's stream, what was sent twice only once."""
    return asyncio.run(_read_all(url, secret_key, slots))


async def _read_all(url: str, secret_key: str, slots: Sequence[Slot]) -> dict[Slot, list[Any]]:
    async with ControlPlane(url, secret_key) as plane:
        chunks = await asyncio.gather(*(_read(plane, slot) for slot in slots))

    return dict(zip(slots, chunks, strict=True))


async def _read(plane: ControlPlane, slot: Slot) -> list[Any]:
    run_id, key = slot.parts
    subscription = Subscription(
        lambda cursor: plane.open_run_stream(
            run_id, key, last_event_id=cursor, timeout_s=_SILENCE_S
        )
    )

    return [
        part.chunk async for parts in subscription.batches() for part in parts if part.has_chunk
    ]
