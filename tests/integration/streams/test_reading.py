"""`streams.read` over real HTTP, for async and plain tasks."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import json
from datetime import timedelta

import pytest

from td_worker import streams
from td_worker.context import executing
from td_worker.errors import BlockingCallError, NotInTaskError, StreamKeyError, StreamReadError
from td_worker.streams import blocking
from td_worker.testing import StoredRecord
from tests.integration.streams.conftest import END, RUN, read_all, read_all_async, read_to_end


def stored(seq: int, data: object, envelope_id: str | None = None) -> StoredRecord:
    body = json.dumps({"data": data, "id": envelope_id or f"e-{seq}"})
    return StoredRecord(seq_num=seq, body=body)


async def test_a_read_follows_what_is_still_being_written(platform, execution):
    """A reader that comes first gets every chunk."""
    with executing(execution):
        reading = asyncio.create_task(read_to_end(streams.read(RUN, timeout=timedelta(minutes=1))))
        async with streams.writer() as w:
            for n in range(3000):
                await w.write(n)
            await w.write(END)
        assert await reading == list(range(3000))


async def test_a_read_ends_after_the_silence_asked_for(platform, execution):
    """The server ends the body a second after the last record, and with it the iterator ends."""
    platform.put_records(RUN, "k", [stored(0, "only")])
    with executing(execution):
        assert [chunk async for chunk in streams.read(RUN, "k", timeout=1)] == ["only"]


@pytest.mark.parametrize(
    ("start_index", "expected"), [(None, "abcd"), (0, "abcd"), (1, "bcd"), (3, "d")]
)
def test_a_start_index_is_the_first_sequence_number(platform, execution, start_index, expected):
    """None and 0 mean all; otherwise the first chunk is the record of that number."""
    platform.put_records(RUN, "k", [stored(n, letter) for n, letter in enumerate("abcd")])
    with executing(execution):
        found = read_all("k", start_index=start_index)

    assert found == list(expected)


def test_what_is_no_chunk_is_left_out(platform, execution):
    """Commands, control records, foreign bodies and duplicates are no chunks; null is one."""
    platform.put_records(
        RUN,
        "k",
        [
            stored(0, "a"),
            StoredRecord(seq_num=1, body="x", headers=(("", "trim"),)),
            StoredRecord(seq_num=2, body="", headers=(("trigger-control", "turn-complete"),)),
            StoredRecord(seq_num=3, body="not json at all"),
            stored(4, "a", "e-0"),
            stored(5, None),
        ],
    )
    with executing(execution):
        assert read_all("k") == ["a", None]


async def test_a_read_resumes_over_a_broken_connection(platform, execution):
    """A refused and a dropped connection cost time only."""
    platform.put_records(RUN, "k", [stored(n, n) for n in range(10)])
    platform.spoil("read", status=503)
    platform.spoil("read")
    with executing(execution):
        found = await read_all_async("k")

    assert found == list(range(10))


@pytest.mark.parametrize("status", [401, 404])
async def test_a_read_that_is_refused_says_so(platform, execution, status):
    """A final status is raised where the chunks are awaited, with run, key and status."""
    platform.spoil("read", status=status, text="no such thing")
    with executing(execution), pytest.raises(StreamReadError, match="no such thing") as caught:
        await anext(streams.read("run_x", "k"))

    error = caught.value
    assert (error.run_id, error.key, error.status) == ("run_x", "k", status)


async def test_a_reader_that_stops_early_closes_its_connection(platform, execution):
    """Leaving the loop ends the subscription: nothing is read on behind its back."""
    platform.put_records(RUN, "k", [stored(0, "first")])
    with executing(execution):
        async with contextlib.aclosing(streams.read(RUN, "k")) as reading:
            async for chunk in reading:
                assert chunk == "first"
                break


def test_a_plain_reader_that_stops_early_closes_its_connection(platform, execution):
    """The twin: closing the generator ends the subscription."""
    platform.put_records(RUN, "k", [stored(0, "first")])
    with executing(execution), contextlib.closing(blocking.read(RUN, "k")) as reading:
        assert next(reading) == "first"


async def test_cancelling_a_reader_ends_its_subscription(platform, execution):
    """A reader cancelled while it waits for records ends; others can read on."""
    with executing(execution):
        reading = asyncio.create_task(read_to_end(streams.read(RUN)))
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await streams.append("x")
        assert await read_all_async() == ["x"]


@pytest.mark.parametrize("timeout", [0, 601, timedelta(minutes=11), float("nan")])
def test_a_timeout_out_of_bounds_is_refused(platform, execution, timeout):
    """1 to 600 seconds is what the server takes."""
    with executing(execution), pytest.raises(ValueError, match="1 to 600"):
        streams.read(RUN, timeout=timeout)


def test_bad_arguments_of_a_read_are_refused(platform, execution):
    """A negative index, a path as key or run id, and no task: each is raised at the call."""
    with executing(execution):
        with pytest.raises(ValueError, match="counts from 0"):
            streams.read(RUN, start_index=-1)
        with pytest.raises(StreamKeyError):
            streams.read(RUN, "a/b")
        with pytest.raises(StreamKeyError):
            streams.read("a/b")
    with pytest.raises(NotInTaskError):
        contextvars.Context().run(streams.read, RUN)


async def test_plain_calls_are_refused_on_an_event_loop(platform, execution):
    """A twin that would stop the whole loop says which module to use instead."""
    with executing(execution):
        for call in (
            lambda: blocking.writer(),
            lambda: blocking.append("x"),
            lambda: blocking.read(RUN),
        ):
            with pytest.raises(BlockingCallError):
                call()
