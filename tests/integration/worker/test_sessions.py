"""What a task does with a session's channels, against a control plane and a store in memory."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

import pytest

from td_worker import sessions
from td_worker.context import Execution
from td_worker.errors import SessionIdError, SessionReadError, StreamWriteError
from td_worker.sessions import Control, Record, SessionOut
from td_worker.testing import FakePlatform

pytestmark = pytest.mark.usefixtures("execution")

END = "the end of what is read"


async def numbers(count: int) -> Any:
    """Yield that many."""
    for number in range(count):
        yield number


async def read_all(out: SessionOut, **how: Any) -> list[Any]:
    """Return what is there by now: a last record ends the reading, not a time of silence."""
    await out.append(END)
    found: list[Any] = []
    async with aclosing(out.read(**how)) as reading:
        async for data in reading:
            if data == END:
                return found
            found.append(data)
    raise AssertionError("the stream ended before its last record")


@pytest.mark.conformance("SC1")
async def test_one_put_serves_pipes_and_writers(platform: FakePlatform):
    """Two pipes and a writer into one channel cost one PUT."""
    out = sessions.open("session-1").out

    await out.pipe(numbers(2)).wait()
    await out.pipe(numbers(2)).wait()
    async with out.writer() as writer:
        await writer.write("w")

    assert platform.puts == {("session-1", "out"): 1}
    assert platform.sessions.chunks("session-1") == [0, 1, 0, 1, "w"]


@pytest.mark.conformance("SC2")
async def test_a_failed_put_is_asked_for_again(platform: FakePlatform):
    """A pipe whose PUT is refused says so; the next one asks again."""
    out = sessions.open("session-1").out
    platform.spoil("mint", status=403, text="no")

    with pytest.raises(StreamWriteError, match="may not do that with sessions"):
        await out.pipe(numbers(1)).wait()
    await out.pipe(numbers(1)).wait()

    assert platform.puts == {("session-1", "out"): 2}


@pytest.mark.conformance("SC3")
async def test_reset_mints_anew(platform: FakePlatform):
    """After `reset` the next pipe mints another credential."""
    out = sessions.open("session-1").out

    await out.pipe(numbers(1)).wait()
    await out.reset()
    await out.pipe(numbers(1)).wait()

    assert platform.puts == {("session-1", "out"): 2}


@pytest.mark.conformance("SC4")
async def test_each_session_has_a_slot(platform: FakePlatform):
    """Two sessions cost one PUT each."""
    await sessions.open("session-a").out.pipe(numbers(1)).wait()
    await sessions.open("session-b").out.pipe(numbers(1)).wait()

    assert platform.puts == {("session-a", "out"): 1, ("session-b", "out"): 1}


@pytest.mark.conformance("SC5")
async def test_a_failed_writer_gives_its_credential_up(platform: FakePlatform):
    """The writer's caller sees the failure, and the next pipe mints anew and goes through."""
    out = sessions.open("session-1").out
    platform.spoil("append", status=400, text="token expired")

    with pytest.raises(StreamWriteError, match="token expired"):
        await out.pipe(numbers(1)).wait()
    await out.pipe(numbers(1)).wait()

    assert platform.puts == {("session-1", "out"): 2}
    assert platform.sessions.chunks("session-1") == [0]


@pytest.mark.conformance("E1", "E2")
async def test_turns_are_read_in_order():
    """Records and control records of two turns come in order, the control ones by the callback."""
    out = sessions.open("session-1").out
    ends: list[Control] = []
    parts: list[Record] = []
    for turn in range(2):
        for number in range(3):
            await out.append({"turn": turn, "n": number})
        written = await out.write_control("turn-complete", {"session-in-event-id": str(turn)})

    found = await read_all(out, on_control=ends.append, on_part=parts.append)

    assert found == [{"turn": turn, "n": number} for turn in range(2) for number in range(3)]
    assert [(end.subtype, end.headers["session-in-event-id"]) for end in ends] == [
        ("turn-complete", "0"),
        ("turn-complete", "1"),
    ]
    assert ends[-1].seq_num == written == 7
    assert [part.seq_num for part in parts[:-1]] == [0, 1, 2, 4, 5, 6]


@pytest.mark.conformance("E5", "E10")
async def test_a_read_goes_on_behind_a_cursor():
    """What a writer says of its last record is inclusive: nothing is read twice or left out."""
    out = sessions.open("session-1").out
    async with out.writer() as writer:
        await writer.write({"n": 0})
        await writer.write({"n": 1})
    await out.append({"n": 2})

    assert writer.last_event_id == "1"
    assert await read_all(out, last_event_id=writer.last_event_id) == [{"n": 2}]


@pytest.mark.conformance("E7")
async def test_a_trim_is_not_seen(platform: FakePlatform):
    """A trim takes a number and no PUT, and no reader sees it."""
    out = sessions.open("session-1").out
    await out.append("a")
    trimmed = await out.trim_to(0)
    await out.append("b")

    assert trimmed == 1
    assert await read_all(out) == ["a", "b"]
    assert platform.puts == {("session-1", "out"): 1}


async def test_control_comes_behind_what_was_written():
    """A control record is ordered behind a writer that is still open."""
    out = sessions.open("session-1").out
    async with out.writer() as writer:
        for number in range(5):
            await writer.write(number)
        written = await out.write_control("turn-complete")

    assert written == 5


async def test_both_ids_of_a_session_are_one_slot(platform: FakePlatform):
    """By the id that the control plane gave, and by the external one, one PUT serves."""
    friendly = platform.sessions.add(external_id="order-17")

    await sessions.open(friendly).out.append("a")
    await sessions.open("order-17").out.append("b")
    await sessions.open(friendly).out.append("c")

    assert platform.puts == {("order-17", "out"): 1}
    assert platform.sessions.chunks("order-17") == ["a", "b", "c"]


async def test_a_named_channel_is_apart(platform: FakePlatform):
    """A named channel is a stream of its own, below its session."""
    session = sessions.open("session-1")
    await session.channel("logs").out.append("line")
    await session.out.append("token")

    assert platform.puts == {("session-1", "channels/logs/out"): 1, ("session-1", "out"): 1}
    assert platform.sessions.chunks("session-1", channel="logs") == ["line"]
    assert await read_all(session.channel("logs").out) == ["line"]


async def test_tokens_stay_text():
    """A text that looks like a number or an object is read as the text that was written."""
    out = sessions.open("session-1").out
    for token in ("42", "{}", "true"):
        await out.append(token)

    assert await read_all(out) == ["42", "{}", "true"]


async def test_records_are_drained_without_waiting():
    """`records` returns what is there, control records included."""
    out = sessions.open("session-1").out
    await out.append({"n": 0})
    await out.write_control("turn-complete")
    await out.append({"n": 1})

    first, control, last = await out.records()
    assert isinstance(first, Record)
    assert isinstance(control, Control)
    assert isinstance(last, Record)
    assert (first.data, control.subtype, last.data) == ({"n": 0}, "turn-complete", {"n": 1})
    assert [record.seq_num for record in await out.records(after=1)] == [2]


async def test_a_settled_session_ends_the_read_at_once():
    """With `peek_settled` a read of a session whose turn is complete ends by itself."""
    out = sessions.open("session-1").out
    await out.append("a")
    await out.write_control("turn-complete")

    assert [data async for data in out.read(peek_settled=True, timeout=600)] == ["a"]


async def test_writers_that_nobody_awaits_are_drained(platform: FakePlatform, execution: Execution):
    """What a session's writer has taken is acked by the end of the run, awaited or not."""
    writer = sessions.open("session-2").out.writer()
    for number in range(100):
        await writer.write(number)

    assert await execution.streams.drain(execution, 60) == 0
    assert platform.sessions.chunks("session-2") == list(range(100))


async def test_a_read_that_is_refused_says_why(platform: FakePlatform):
    """A refusal names the slot and what to do, with its status."""
    platform.spoil("read", status=404, text="no session")

    with pytest.raises(SessionReadError, match="check the id") as caught:
        await anext(sessions.open("session-1").out.read())
    assert caught.value.status == 404


@pytest.mark.parametrize("name", ["", "a/b", "a b", "x" * 129, "é", "main", "a~b"])
def test_a_channel_needs_a_plain_name(name: str):
    """A channel's name is 1 to 128 of a few characters, and not the main channel's."""
    with pytest.raises(SessionIdError):
        sessions.open("session-1").channel(name)


@pytest.mark.parametrize("session_id", ["", " a", "a/b", ".", "..", "x" * 257, "\ud800"])
def test_a_session_id_is_one_segment(session_id: str):
    """What cannot be one segment of an address is refused when it is opened."""
    with pytest.raises(SessionIdError):
        sessions.open(session_id)
