"""The streams an execution writes to, kept until they are settled and drained at its end."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Future
from functools import partial
from threading import Lock
from typing import Protocol
from weakref import ref


class OpenedStream(Protocol):
    """One writer's share of a stream, as the end of a run sees it. All members are thread-safe."""

    settled: Future[None]
    """Done, without a result, once nothing more will be sent: all acked, failed or aborted."""
    lost: int
    """Records that were given up; final once settled."""

    def finish(self) -> None:
        """Take nothing more, unless a source still feeds it, and send the rest at once."""

    def give_up(self) -> None:
        """Drop what is not acked, count it as lost and settle now."""


class OpenedStreams:
    """
    The open streams of one execution.

    A stream leaves when it settles: a loop of a million appends holds only those in flight.
    """

    def __init__(self) -> None:
        self._open: set[OpenedStream] = set()
        self._lost = 0
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._open)

    @property
    def records_lost(self) -> int:
        """Records given up by the streams that have settled so far."""
        return self._lost

    def add(self, stream: OpenedStream) -> None:
        """Watch `stream` until it settles."""
        with self._lock:
            self._open.add(stream)
        # By a weak reference: a future keeps its callbacks, and a cycle would keep every stream of
        # a hot loop until the garbage collector comes by.
        stream.settled.add_done_callback(partial(self._settle, ref(stream)))

    async def drain(self, timeout: float) -> int:
        """
        Wait until every stream is settled; after `timeout` seconds give up the rest.

        Never raises because of a stream: what went wrong was logged where it happened.

        Returns:
            How many records of this execution were lost.
        """
        deadline = time.monotonic() + timeout
        while (streams := self._snapshot()) and (left := deadline - time.monotonic()) > 0:
            for stream in streams:
                stream.finish()
            await asyncio.wait([_watch(stream) for stream in streams], timeout=left)

        for stream in self._snapshot():
            stream.give_up()

        return self._lost

    def _settle(self, watched: ref[OpenedStream], _settled: Future[None]) -> None:
        stream = watched()
        if stream is None:
            return
        with self._lock:
            self._open.discard(stream)
            self._lost += stream.lost

    def _snapshot(self) -> list[OpenedStream]:
        with self._lock:
            return list(self._open)


def _watch(stream: OpenedStream) -> asyncio.Future[None]:
    return asyncio.shield(asyncio.wrap_future(stream.settled))
