"""Append sessions: batches on one long request, acknowledgements on its answer, in order."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

import msgspec

from td_runtime.gateway.errors import DrainingError, FrameInvalidError, GatewayError
from td_runtime.gateway.exchange import Exchange
from td_runtime.gateway.platform import protobuf, s2s
from td_runtime.gateway.platform.holder import Holder
from td_runtime.gateway.platform.refusals import reply_to
from td_runtime.gateway.platform.sequencer import AppendAck
from td_runtime.gateway.platform.streams import Creation, Series, Streams
from td_runtime.gateway.platform.wires import FRAME_HEADERS

# What a client may have unacknowledged before we stop reading from it.
UNACKED_BYTES_MAX: Final = 8 * 1024 * 1024
UNACKED_BATCHES_MAX: Final = 1024


class _Pending(msgspec.Struct, gc=False):
    """A batch on its way to the disk."""

    ack: asyncio.Future[AppendAck]
    size: int


class AppendSession:
    """Appends what one client sends until it ends, or until the first failure.

    Batches are stored while earlier ones are still being written. None is stored after one that
    failed; all before it are acknowledged, and only then the client is told why.
    """

    def __init__(
        self,
        streams: Streams,
        exchange: Exchange,
        name: str,
        *,
        holder: Holder,
        creation: Creation | None,
        stopping: asyncio.Event,
    ) -> None:
        self._streams = streams
        self._exchange = exchange
        self._name = name
        self._holder = holder
        self._creation = creation
        self._stopping = stopping
        self._series = Series()
        self._pending: deque[_Pending] = deque()
        self._size = 0
        self._is_ended = False
        self._failure: GatewayError | None = None
        self._more = asyncio.Event()
        self._room = asyncio.Event()

    async def run(self) -> None:
        """Answer the exchange, from head to end."""
        if not await self._exchange.start_stream(FRAME_HEADERS):
            return
        await self._exchange.send_chunk(b"")  # the server sends the head with the first part
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._receive()), group.create_task(self._drain())]
            with self._holder.watch(self._check_holder):
                await self._acknowledge()
            for task in tasks:
                task.cancel()

    async def _acknowledge(self) -> None:
        """Send acknowledgements in order, as many at a time as there are."""
        while True:
            if not self._pending:
                if self._is_ended:
                    return await self._end()
                self._more.clear()
                await self._more.wait()
                continue
            await asyncio.wait([self._pending[0].ack])
            frames = b"".join(self._take_acknowledged())
            if frames and not self._exchange.is_gone:
                await self._exchange.send_chunk(frames)

    def _take_acknowledged(self) -> list[bytes]:
        frames: list[bytes] = []
        while self._pending and self._pending[0].ack.done():
            pending = self._pending.popleft()
            self._size -= pending.size
            error = pending.ack.exception()
            if error is None:
                frames.append(s2s.encode_frame(protobuf.encode_ack(pending.ack.result())))
            elif not isinstance(error, GatewayError):
                raise error
            else:
                # What follows it was refused for its sake.
                self._fail(error)
                self._failure = error
                _retrieve(self._pending)
                self._pending.clear()
        self._room.set()

        return frames

    async def _end(self) -> None:
        if self._exchange.is_gone:
            return
        last = b"" if self._failure is None else s2s.encode_terminal(reply_to(self._failure))
        await self._exchange.send_chunk(last, is_last=True)

    async def _receive(self) -> None:
        """Read frames and start their appends, until the end or the first bad one."""
        frames = s2s.FrameReader()
        try:
            while (part := await self._exchange.read_part()) is not None:
                for body in frames.feed(part):
                    await self._append(body)
            if not frames.is_between:
                raise FrameInvalidError("the body ended in the middle of a frame")
        except GatewayError as error:
            self._fail(error)
        else:
            self._finish()

    async def _append(self, body: bytes) -> None:
        while self._size > UNACKED_BYTES_MAX or len(self._pending) >= UNACKED_BATCHES_MAX:
            self._room.clear()
            await self._room.wait()
        self._holder.check()
        batch = protobuf.parse_append(body)
        self._holder.admit(batch)
        if self._is_ended:  # it failed while this one waited for room
            return
        ack = self._streams.submit(self._name, batch, creation=self._creation, series=self._series)
        self._pending.append(_Pending(ack, len(body)))
        self._size += len(body)
        self._more.set()

    def _check_holder(self) -> None:
        try:
            self._holder.check()
        except GatewayError as error:
            self._fail(error)

    async def _drain(self) -> None:
        await self._stopping.wait()
        self._fail(DrainingError("the gateway is stopping; connect again"))

    def _fail(self, error: GatewayError) -> None:
        """Accept nothing more; the first failure is what the client is told."""
        if self._failure is None and not self._is_ended:
            self._failure = error
        self._finish()

    def _finish(self) -> None:
        self._is_ended = True
        self._more.set()


def _retrieve(pending: deque[_Pending]) -> None:
    """Look at what fails for an earlier failure's sake, so that nobody warns of it."""
    for one in pending:
        one.ack.add_done_callback(lambda ack: ack.cancelled() or ack.exception())
