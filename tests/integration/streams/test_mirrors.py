"""The local mirror of a pipe: bounded, opt-in, and in step with the stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from td_worker import streams
from td_worker.context import executing
from td_worker.errors import StreamError, StreamWriteError
from td_worker.streams import blocking
from td_worker.streams.mirror import MIRROR_CHUNKS, Mirror
from tests.integration.streams.conftest import RUN


class Counted:
    """An async source that says how many chunks were taken from it."""

    def __init__(self, to: int) -> None:
        self.to = to
        self.taken = 0

    async def __call__(self) -> AsyncIterator[int]:
        for n in range(self.to):
            self.taken += 1
            yield n


async def test_a_mirror_gives_what_the_stream_got(platform, execution):
    """Objects come as the source gave them, all of them, in order, and the stream is complete."""
    chunks = [{"n": n} for n in range(1000)]
    with executing(execution):
        handle = streams.pipe("answer", chunks, mirror=True)
        found = [chunk async for chunk in handle.stream]
        assert await handle.wait() == "999"

    assert all(a is b for a, b in zip(found, chunks, strict=True))
    assert platform.chunks(RUN, "answer") == chunks


async def test_a_slow_reader_holds_back_the_source(platform, execution):
    """Unread, a mirror lets the source run a bounded way ahead; read, to its end."""
    source = Counted(10 * MIRROR_CHUNKS)
    with executing(execution):
        handle = streams.pipe(source(), mirror=True)
        while source.taken < MIRROR_CHUNKS:
            await asyncio.sleep(0)
        for _ in range(1000):
            await asyncio.sleep(0)
        assert source.taken == MIRROR_CHUNKS
        assert len([chunk async for chunk in handle.stream]) == source.to
        await handle.wait()


async def test_a_reader_that_leaves_lets_the_pipe_go_on_alone(platform, execution):
    """Breaking out of the loop is enough: the stream gets everything."""
    source = Counted(5 * MIRROR_CHUNKS)
    with executing(execution):
        handle = streams.pipe(source(), mirror=True)
        async for chunk in handle.stream:
            assert chunk == 0
            break
        await handle.wait()

    assert len(platform.chunks(RUN)) == source.to


async def test_a_put_that_failed_is_raised_by_the_mirror(platform, execution):
    """Nothing is yielded before the first record is acked; a refused mint is raised instead."""
    platform.unknown.add(RUN)
    found = []
    with executing(execution):
        handle = streams.pipe(["never seen"], mirror=True)
        with pytest.raises(StreamWriteError, match="does not know this run"):
            found += [chunk async for chunk in handle.stream]
        with pytest.raises(StreamWriteError):
            await handle.wait()

    assert found == []


async def test_a_sources_error_is_raised_behind_its_last_chunk(platform, execution):
    """The reader gets all that came before, then the error; so does `wait`."""

    async def broken() -> AsyncIterator[int]:
        yield 1
        raise ZeroDivisionError

    found = []

    async def read(handle: streams.StreamHandle) -> None:
        async for chunk in handle.stream:
            found.append(chunk)

    with executing(execution):
        handle = streams.pipe(broken(), mirror=True)
        with pytest.raises(ZeroDivisionError):
            await read(handle)
        with pytest.raises(ZeroDivisionError):
            await handle.wait()

    assert found == [1]


async def test_an_abort_ends_the_mirror(platform, execution):
    """An aborted pipe's reader gets a clean end, also while it waits for a chunk."""

    async def one_and_hang() -> AsyncIterator[int]:
        yield 1
        await asyncio.Event().wait()

    found = []
    with executing(execution):
        handle = streams.pipe(one_and_hang(), mirror=True)
        async for chunk in handle.stream:
            found.append(chunk)
            handle.abort()

    assert found == [1]


async def test_the_end_of_a_run_frees_a_pipe_whose_mirror_nobody_reads(platform):
    """The drain lets the source run to its end without a reader: nothing is lost."""
    source = Counted(3 * MIRROR_CHUNKS)
    with platform.client() as client, platform.execution(run_id=RUN) as execution:
        streams.pipe(source(), mirror=True)
        assert await asyncio.wrap_future(client.submit(client.drain(execution, 60))) == 0

    assert len(platform.chunks(RUN)) == source.to


async def test_a_pipe_without_a_mirror_says_so(platform, execution):
    """It is opt-in: a copy that nobody reads would stall the stream."""
    with executing(execution):
        handle = streams.pipe([1])
        with pytest.raises(StreamError, match="mirror=True"):
            _ = handle.stream
        await handle.wait()


def test_threads_mirror_alike(platform, execution):
    """The twin: all chunks, back-pressure, errors behind the last chunk, a reader that leaves."""
    handle = blocking.pipe(range(1000), mirror=True)
    assert list(handle.stream) == list(range(1000))
    assert handle.wait() == "999"

    def broken() -> Iterator[int]:
        yield 1
        raise ZeroDivisionError

    failing = blocking.pipe("broken", broken(), mirror=True)
    reading = failing.stream
    assert next(reading) == 1
    with pytest.raises(ZeroDivisionError):
        next(reading)

    left = blocking.pipe("left", range(1000), mirror=True)
    reading = left.stream
    assert next(reading) == 0
    reading.close()
    assert left.wait() == "999"


def test_a_mirror_asks_for_patience_at_its_bound():
    """Below the bound there is room at once; at it, when the reader has taken."""
    mirror = Mirror(bound=2)
    assert mirror.put(1) is None
    room = mirror.put(2)
    assert room is not None
    assert not room.done()
    assert mirror.take() == [1, 2]
    assert room.done()
