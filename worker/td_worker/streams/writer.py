"""Writers and pipes for async code."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Iterable
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self

from td_worker.streams.arguments import TURN
from td_worker.streams.lane import Lane

Source = AsyncIterable[Any] | Iterable[Any]

_pumps: set[asyncio.Task[None]] = set()
"""Asyncio refers to its tasks weakly: a pipe nobody holds must still run to its end."""


class Writer:
    """
    Writes chunks to one stream, in order; made by `streams.writer`.

    ```python
    async with streams.writer("progress") as w:
        await w.write({"done": 1})
    w.last_event_id
    ```

    Leaving the block waits until everything is acked and raises what went wrong. When the block
    itself raises, what was accepted is still flushed, and the block's own error goes on.
    """

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._turn = 0

    @property
    def last_event_id(self) -> str | None:
        """The sequence number of the last acked record, inclusive; None before any."""
        return self._lane.last_event_id

    async def write(self, chunk: object) -> None:
        """
        Accept one chunk into the buffer; waits while the buffer is full.

        Raises:
            ChatChunkTooLargeError: The chunk is over the cap of a record; this writer has failed.
            ChunkNotEncodableError: JSON cannot express it; this writer has failed.
            StreamWriteError: Records of this writer were given up.
            StreamClosedError: The writer was closed.
        """
        body = self._lane.offer(chunk)
        if body is not None:
            await self._wait_for_space(body)
        self._turn += 1
        if self._turn >= TURN:
            # A write that finds space does not suspend: without this a hot loop would starve
            # everybody else on the loop, and could not be cancelled.
            self._turn = 0
            await asyncio.sleep(0)

    async def flush(self) -> None:
        """
        Wait until everything accepted so far is acked.

        Raises:
            StreamWriteError: Records of this writer were given up.
        """
        await asyncio.wrap_future(self._lane.flush())

    async def wait(self) -> str | None:
        """
        Close the writer and wait until everything is acked.

        Returns:
            The sequence number of the last record, inclusive; None when nothing was written.

        Raises:
            StreamError: What this writer failed of.
        """
        self._lane.close()

        return await wait_settled(self._lane)

    def abort(self) -> None:
        """Drop what is not sent yet; `wait` then returns quietly."""
        self._lane.abort()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _tb: TracebackType | None,
    ) -> None:
        self._lane.close()
        if error is None:
            await wait_settled(self._lane)
        elif isinstance(error, Exception):
            await settled(self._lane)
        # Cancelled: whoever cancels is waiting; the end of the run drains what was accepted.

    async def _wait_for_space(self, body: bytes) -> None:
        while True:
            await asyncio.wrap_future(self._lane.space(body))
            if self._lane.retry(body):
                return


class StreamHandle:
    """A pipe under way; made by `streams.pipe`. It runs on whether or not anybody waits for it."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane

    @property
    def last_event_id(self) -> str | None:
        """The sequence number of the last acked record, inclusive; None before any."""
        return self._lane.last_event_id

    async def wait(self) -> str | None:
        """
        Wait until the source has ended and every record is acked.

        Cancelling the caller does not end the pipe.

        Returns:
            The sequence number of the last record, inclusive; None when there was none. An aborted
            pipe returns quietly too.

        Raises:
            Exception: What the source raised.
            StreamError: What the stream failed of.
        """
        return await wait_settled(self._lane)

    def abort(self) -> None:
        """Stop the source and drop what is not sent yet; the slot keeps its credential."""
        self._lane.abort()


def start_pipe(lane: Lane, source: Source) -> StreamHandle:
    """Feed `lane` from `source` in a task of the running loop."""
    loop = asyncio.get_running_loop()
    task = loop.create_task(_pump(lane, source), name="stream pipe")
    _pumps.add(task)
    task.add_done_callback(_pumps.discard)
    # From any thread; before its first step, too, in which case the pump never runs.
    lane.stop_source = lambda: loop.call_soon_threadsafe(task.cancel)
    task.add_done_callback(lambda _: lane.abort() if task.cancelled() else None)

    return StreamHandle(lane)


async def settled(lane: Lane) -> None:
    """Wait until `lane` is settled, whatever became of it."""
    await wait_for(lane.settled)


async def wait_for(shared: Future[None]) -> None:
    """Wait for a future that others wait for as well: cancelling this caller leaves it alone."""
    await asyncio.shield(asyncio.wrap_future(shared))


async def wait_settled(lane: Lane) -> str | None:
    """Wait until `lane` is settled; return its last event id, or raise its error."""
    await settled(lane)
    if lane.error is not None:
        raise lane.error

    return lane.last_event_id


async def _pump(lane: Lane, source: Source) -> None:
    """Write all that `source` yields, then end `lane` as the source ended."""
    if lane.closed:
        return  # aborted before the start: the source stays untouched
    writer = Writer(lane)
    try:
        await _write_all(writer, source)
    except Exception as error:  # noqa: BLE001  it is raised by `wait`, to whom it concerns
        lane.fail(error)  # does nothing to a lane that was aborted or has failed before
    else:
        lane.close()


async def _write_all(writer: Writer, source: Source) -> None:
    try:
        if isinstance(source, AsyncIterable):
            async for chunk in source:
                await writer.write(chunk)
        else:
            for chunk in source:
                await writer.write(chunk)
    finally:
        # A generator that is left in its middle holds connections until someone collects it.
        await _close_source(source)


async def _close_source(source: Source) -> None:
    if (aclose := getattr(source, "aclose", None)) is not None:
        await aclose()
    elif isinstance(source, Iterable) and (close := getattr(source, "close", None)) is not None:
        close()
