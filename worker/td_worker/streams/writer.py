"""Writers and pipes for async code."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self

from td_worker.errors import StreamClosedError
from td_worker.streams.arguments import TURN, check_source
from td_worker.streams.face import HandleFace, WriterFace, result_of
from td_worker.streams.lane import Lane
from td_worker.streams.mirror import Mirror

Source = AsyncIterable[Any] | Iterable[Any]

Write = Callable[[object], Awaitable[None]]

_pumps: set[asyncio.Task[None]] = set()
"""Asyncio refers to its tasks weakly: a pipe nobody holds must still run to its end."""


class Writer(WriterFace):
    """
    Writes chunks to one stream, in order; made by `streams.writer`.

    ```python
    async with streams.writer("progress") as w:
        w.merge(model.stream(prompt))
        await w.write({"done": 1})
    w.last_event_id
    ```

    Leaving the block waits until every merged source has ended and everything is acked, and raises
    what went wrong. When the block itself raises, merged sources are stopped, what was accepted is
    still flushed, and the block's own error goes on.
    """

    def __init__(self, lane: Lane) -> None:
        super().__init__(lane)
        self._turn = 0

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

    def merge(self, source: Source) -> None:
        """
        Write all that `source` yields, too, by itself and in its own order among the rest.

        The writer closes when its block and every merged source have ended. An error that the
        source raises is logged and ends that source alone, as with the official SDK: the stream
        closes normally with what was written.

        Args:
            source: An async iterable, or a plain one that does not block.

        Raises:
            StreamClosedError: The writer was closed.
            TypeError: The source is text.
        """
        check_source(source, what="writer.merge")
        loop = asyncio.get_running_loop()
        task: asyncio.Task[None] | None = None
        end = self._merging().begin(lambda: task and loop.call_soon_threadsafe(task.cancel))
        task = _start(_feed(Writer(self._lane).write, source), name="stream merge")
        task.add_done_callback(lambda done: end(_error_of(done)))

    async def flush(self) -> None:
        """
        Wait until everything accepted so far is acked.

        Raises:
            StreamWriteError: Records of this writer were given up.
        """
        await asyncio.wrap_future(self._lane.flush())

    async def wait(self) -> str | None:
        """
        Wait until every merged source has ended, close the writer and wait until all is acked.

        Returns:
            The sequence number of the last record, inclusive; None when nothing was written.

        Raises:
            StreamError: What this writer failed of.
        """
        if self._merges is not None:
            if self._lane.closed:  # a write has failed, and theirs would, too
                self._merges.stop()
            await wait_for(self._merges.ended())
        self._lane.close()

        return await wait_settled(self._lane)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _tb: TracebackType | None,
    ) -> None:
        if error is None:
            await self.wait()
            return
        if self._merges is not None:
            self._merges.stop()
        self._lane.close()
        if isinstance(error, Exception):
            await settled(self._lane)
        # Cancelled: whoever cancels is waiting; the end of the run drains what was accepted.

    async def _wait_for_space(self, body: bytes) -> None:
        while True:
            await asyncio.wrap_future(self._lane.space(body))
            if self._lane.retry(body):
                return


class StreamHandle(HandleFace):
    """
    A pipe under way; made by `streams.pipe`. It runs on whether or not anybody waits for it.

    ```python
    handle = streams.pipe("answer", model.stream(prompt))
    last_event_id = await handle.wait()
    ```
    """

    @property
    def stream(self) -> AsyncGenerator[Any, None]:
        """
        The chunks of a pipe with `mirror=True`, as the source gave them; for one reader, once.

        ```python
        handle = streams.pipe("answer", model.stream(prompt), mirror=True)
        text = "".join([token async for token in handle.stream])
        ```

        It begins when the first record is acked, so a PUT that failed is raised here, and so is
        what the source raised, behind the last chunk. 256 chunks are kept for a reader that lags;
        then the source waits, and with it the stream. A reader that leaves the loop, and the end
        of the run, let the pipe go on alone; `wait` before reading would wait for ever.

        Raises:
            StreamError: The pipe has no mirror.
        """
        return _read_mirror(self._mirrored(), self._lane)

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


def start_pipe(lane: Lane, source: Source, *, mirror: bool = False) -> StreamHandle:
    """Feed `lane` from `source` in a task of the running loop."""
    loop = asyncio.get_running_loop()
    copy = Mirror() if mirror else None
    task = _start(_pump(lane, source, copy), name="stream pipe")
    # From any thread; before its first step, too, in which case the pump never runs.
    lane.stop_source = lambda: loop.call_soon_threadsafe(task.cancel)
    if copy is not None:
        lane.on_finish = copy.close
        task.add_done_callback(lambda _: copy.end(lane.error))
    task.add_done_callback(lambda _: lane.abort() if task.cancelled() else None)

    return StreamHandle(lane, copy)


async def settled(lane: Lane) -> None:
    """Wait until `lane` is settled, whatever became of it."""
    await wait_for(lane.settled)


async def wait_for(shared: Future[None]) -> None:
    """Wait for a future that others wait for as well: cancelling this caller leaves it alone."""
    await asyncio.shield(asyncio.wrap_future(shared))


async def wait_settled(lane: Lane) -> str | None:
    """Wait until `lane` is settled; return its last event id, or raise its error."""
    await settled(lane)

    return result_of(lane)


def _start(work: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:
    task = asyncio.get_running_loop().create_task(work, name=name)
    _pumps.add(task)
    task.add_done_callback(_pumps.discard)

    return task


def _error_of(task: asyncio.Task[None]) -> Exception | None:
    error = None if task.cancelled() else task.exception()

    return error if isinstance(error, Exception) else None


async def _pump(lane: Lane, source: Source, mirror: Mirror | None) -> None:
    """Write all that `source` yields, then end `lane` as the source ended."""
    if lane.closed:
        return  # aborted before the start: the source stays untouched
    write = Writer(lane).write
    try:
        await _feed(write if mirror is None else _mirroring(write, mirror), source)
    except (SystemExit, KeyboardInterrupt, GeneratorExit) as error:
        lane.fail(StreamClosedError(repr(error)))  # as the plain `def` twin: `wait` must end
    except Exception as error:  # noqa: BLE001  it is raised by `wait`, to whom it concerns
        lane.fail(error)  # does nothing to a lane that was aborted or has failed before
    else:
        lane.close()


def _mirroring(write: Write, mirror: Mirror) -> Write:
    async def write_and_mirror(chunk: object) -> None:
        await write(chunk)
        if (room := mirror.put(chunk)) is not None:
            await asyncio.wrap_future(room)

    return write_and_mirror


async def _read_mirror(mirror: Mirror, lane: Lane) -> AsyncGenerator[Any, None]:
    is_stored = False
    try:
        while (news := mirror.news()) is not None:
            await asyncio.wrap_future(news)
            chunks = mirror.take()
            if chunks and not is_stored:
                await asyncio.wrap_future(lane.flush())
                is_stored = True
            for chunk in chunks:
                yield chunk
    finally:
        mirror.close()


async def _feed(write: Write, source: Source) -> None:
    try:
        if isinstance(source, AsyncIterable):
            async for chunk in source:
                await write(chunk)
        else:
            for chunk in source:
                await write(chunk)
    except asyncio.CancelledError as error:
        if _is_cancelled():
            raise
        # Something inside the source was cancelled: data is missing, and nobody has asked for that.
        raise StreamClosedError("the source was cancelled from within: it is not whole") from error
    finally:
        # A generator that is left in its middle holds connections until someone collects it.
        await _close_source(source)


def _is_cancelled() -> bool:
    """Say whether somebody has cancelled the task that runs this."""
    task = asyncio.current_task()

    return task is not None and task.cancelling() > 0


async def _close_source(source: Source) -> None:
    if (aclose := getattr(source, "aclose", None)) is not None:
        await aclose()
    elif isinstance(source, Iterable) and (close := getattr(source, "close", None)) is not None:
        close()
