"""Follows the streams of one run as a reader would, and counts what it sees."""

import asyncio
from typing import Final

from td_worker.control_plane import ControlPlane
from td_worker.streams.reader import Subscription

__all__ = ["StreamFollower"]

_SILENCE: Final = 60
"""Seconds without a record after which the server ends a body; then it is asked again."""


class StreamFollower:
    """Reads every stream of a run from its beginning, each in a task of its own."""

    def __init__(self, control_plane: ControlPlane, run_id: str) -> None:
        self._control_plane = control_plane
        self._run_id = run_id
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._positions: dict[str, int] = {}
        self._moved = asyncio.Event()
        self.chunks = 0
        """Chunks read so far; what was sent twice counts once."""

    def follow(self, keys: list[str]) -> None:
        """Begin to read the streams of that name that are not being read yet."""
        for key in keys:
            if key not in self._tasks:
                self._positions[key] = 0
                self._tasks[key] = asyncio.get_running_loop().create_task(self._read(key))

    async def catch_up(self, records: dict[str, int]) -> None:
        """Return when so many records of each stream have been read, then stop reading."""
        self.follow(list(records))
        while any(self._positions[key] < count for key, count in records.items()):
            self._moved.clear()
            moved = asyncio.ensure_future(self._moved.wait())
            done, _ = await asyncio.wait(
                {moved, *self._tasks.values()}, return_when=asyncio.FIRST_COMPLETED
            )
            moved.cancel()
            for task in done - {moved}:
                # A reader only ever ends by an error.
                task.result()
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _read(self, key: str) -> None:
        subscription = Subscription(
            lambda cursor: self._control_plane.open_run_stream(
                self._run_id, key, last_event_id=cursor, timeout_s=_SILENCE
            )
        )
        while True:
            async for parts in subscription.batches():
                self.chunks += sum(part.has_chunk for part in parts)
                self._positions[key] = int(parts[-1].id) + 1
                self._moved.set()
