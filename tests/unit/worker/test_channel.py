"""A socket that carries typed messages: order, back-pressure, nonsense and the peer's end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from td_worker.channel import Channel
from td_worker.messages import (
    MAX_FRAME,
    ChildOutcome,
    FromWorker,
    Outcomes,
    Ready,
    RunError,
    RunOutcome,
    encode_frame,
    parts,
)

_decoder = msgspec.msgpack.Decoder(FromWorker)


class End:
    """One end of a socket pair, and what came out of it."""

    def __init__(
        self, sock: socket.socket, on_message: Callable[[Any], None] | None = None
    ) -> None:
        self.got: list[Any] = []
        self.closed: list[Exception | None] = []
        self.changed = asyncio.Event()
        self._on_message = on_message
        self.channel: Channel[Any] = Channel(
            sock,
            decoder=_decoder,
            on_message=self._receive,
            on_closed=self._close,
            loop=asyncio.get_running_loop(),
        )

    def _receive(self, message: Any) -> None:
        self.got.append(message)
        self.changed.set()
        if self._on_message is not None:
            self._on_message(message)

    def _close(self, reason: Exception | None) -> None:
        self.closed.append(reason)
        self.changed.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            self.changed.clear()
            await self.changed.wait()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def outcome(name: str, size: int = 0) -> RunOutcome:
    return RunOutcome(run_id=name, attempt=1, status="COMPLETED", output=b"x" * size)


async def test_messages_arrive_whole_and_in_order(pair):
    """Frames of a few bytes and of megabytes, more than the kernel takes at once."""
    left, right = End(pair[0]), End(pair[1])
    sizes = [0, 3_000_000, 1, 700_000, 0, 5_000_000]

    for number, size in enumerate(sizes):
        left.channel.send(Outcomes(outcomes=[outcome(str(number), size)]))
    await left.channel.flushed()
    await right.until(lambda: len(right.got) == len(sizes))

    assert [len(message.outcomes[0].output) for message in right.got] == sizes
    left.channel.close()
    await right.until(lambda: bool(right.closed))
    assert right.closed == [None]


async def test_an_optional_message_is_not_queued_for_a_stuck_peer(pair):
    """With a megabyte unsent a notice is dropped, and the sender is told."""
    left = End(pair[0])
    assert left.channel.try_send_frame(encode_frame(Ready(pid=1)))

    left.channel.send(Outcomes(outcomes=[outcome("big", 4_000_000)]))

    assert not left.channel.try_send_frame(encode_frame(Ready(pid=2)))
    left.channel.close()
    assert not left.channel.try_send_frame(encode_frame(Ready(pid=3)))


async def test_what_a_dead_peer_had_sent_is_read_to_its_end(pair):
    """`drain` dispatches it at once, before the loop gets to the socket."""
    right = End(pair[1])
    for number in range(100):
        pair[0].sendall(encode_frame(Ready(pid=number)))
    pair[0].close()

    right.channel.drain()

    assert [message.pid for message in right.got] == list(range(100))
    assert right.closed == [None]


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x03abc",
        encode_frame(RunError(type="not", message="a message of this channel")),
    ],
)
async def test_nonsense_closes_the_channel_with_its_reason(pair, nonsense):
    """The owner is told once why, and what came before the nonsense has been dispatched."""
    right = End(pair[1])
    pair[0].sendall(encode_frame(Ready(pid=1)))
    await right.until(lambda: bool(right.got))

    pair[0].sendall(nonsense)
    await right.until(lambda: bool(right.closed))

    assert right.got == [Ready(pid=1)]
    assert isinstance(right.closed[0], ValueError)


async def test_a_handler_that_closes_the_channel_gets_no_more_messages(pair):
    """The frames behind it in the same read are dropped."""
    right = End(pair[1], on_message=lambda _: right.channel.close())
    pair[0].sendall(encode_frame(Ready(pid=1)) + encode_frame(Ready(pid=2)))

    await right.until(lambda: bool(right.closed))

    assert right.got == [Ready(pid=1)]


async def test_flushed_returns_when_the_peer_dies(pair):
    """Nobody waits for a peer that will never read."""
    left = End(pair[0])
    left.channel.send(Outcomes(outcomes=[outcome("big", 8_000_000)]))
    waiting = asyncio.create_task(left.channel.flushed())
    await asyncio.sleep(0)
    assert not waiting.done()

    pair[1].close()

    await waiting


def test_outcomes_are_divided_into_frames_that_fit():
    """Outputs and tracebacks count; one outcome alone may fill a part; none is lost."""
    error = RunError(type="E", message="m", traceback="t" * 2**20)
    outcomes = [outcome(str(n), 9 * 2**20) for n in range(9)]
    outcomes += [
        RunOutcome(run_id=str(n), attempt=1, status="FAILED", error=error) for n in range(99)
    ]

    divided = parts(outcomes)

    assert [each for part in divided for each in part] == outcomes
    assert all(len(encode_frame(Outcomes(outcomes=part))) < MAX_FRAME // 2 for part in divided)
    assert len(divided) < 30
    assert parts(list[ChildOutcome]()) == [[]]
