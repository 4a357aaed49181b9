"""Read sessions: records from a place in a stream onwards, as long as the client stays."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Final

import msgspec

from td_runtime.gateway.errors import DrainingError, GatewayError
from td_runtime.gateway.exchange import Exchange
from td_runtime.gateway.platform.batches import Format
from td_runtime.gateway.platform.holder import Holder
from td_runtime.gateway.platform.reading import ReadLimit, ReadResult
from td_runtime.gateway.platform.records import StreamPosition
from td_runtime.gateway.platform.streams import Streams
from td_runtime.gateway.platform.wires import Events, Wire

PING_INTERVAL_S: Final = 5.0


class Place(msgspec.Struct, frozen=True):
    """Where a session starts and how far it goes.

    ``wait_s`` is how long it may stay at the tail without a record, None for ever.
    """

    start: int
    limit: ReadLimit
    wait_s: float | None


class ReadSession:
    """Sends a stream to one client until a limit, the wait, the client or the gateway ends it.

    As server-sent events, a session that ends by itself closes with ``data: [DONE]``; one that
    the gateway ends breaks off, so that the client comes back with its last event id.
    """

    def __init__(
        self,
        streams: Streams,
        exchange: Exchange,
        name: str,
        place: Place,
        *,
        stopping: asyncio.Event,
        format_: Format = "raw",
        wire: Wire | None = None,
        holder: Holder | None = None,
    ) -> None:
        """Prepare one.

        Args:
            streams: All streams.
            exchange: The request.
            name: The stream's name.
            place: Where to start, how far to go.
            stopping: Set when the gateway ends.
            format_: How events write bytes.
            wire: What is sent, events if None.
            holder: Whose token must stay good until the end; None for nobody's.
        """
        self._streams = streams
        self._exchange = exchange
        self._name = name
        self._next = place.start
        self._limit = place.limit
        self._wait_s = place.wait_s
        self._wire = wire or Events(format_)
        self._holder = holder
        self._stopping = stopping
        self._wake = asyncio.Event()
        self._count = 0
        self._bytes = 0

    async def run(self, headers: Iterable[tuple[str, str]] = ()) -> None:
        """Answer the exchange, from head to end."""
        self._streams.follow(self._name, self._wake)
        try:
            if not await self._exchange.start_stream((*self._wire.headers, *headers)):
                return
            async with self._exchange.watch(self._wake.set):
                with self._watch_holder():
                    await self._send_to_end()
        finally:
            self._streams.unfollow(self._name, self._wake)

    def _watch_holder(self) -> contextlib.AbstractContextManager[None]:
        if self._holder is None:
            return contextlib.nullcontext()

        return self._holder.watch(self._wake.set)

    async def _send_to_end(self) -> None:
        try:
            await self._send_all()
            last = self._wire.end()
        except GatewayError as error:
            last = self._wire.failure(error)
        if not self._exchange.is_gone and (last or not self._stopping.is_set()):
            await self._exchange.send_chunk(last, is_last=True)

    async def _send_all(self) -> None:
        loop = asyncio.get_running_loop()
        quiet_since, ping_at = loop.time(), loop.time()
        while not self._exchange.is_gone:
            self._wake.clear()
            self._check()
            result = await self._streams.read(self._name, self._next, self._limit)
            if result.records:
                await self._send_batch(result)
                quiet_since = ping_at = loop.time()
            if result.is_spent or self._is_over(loop.time() - quiet_since, result):
                return
            if result.records:
                continue
            if loop.time() >= ping_at:
                await self._send_ping(result.tail)
                ping_at = loop.time() + PING_INTERVAL_S
            await self._sleep(min(ping_at, self._deadline(quiet_since)))

    def _check(self) -> None:
        if self._stopping.is_set():
            raise DrainingError("the gateway is stopping; connect again")
        if self._holder is not None:
            self._holder.check()

    def _deadline(self, quiet_since: float) -> float:
        return float("inf") if self._wait_s is None else quiet_since + self._wait_s

    def _is_over(self, quiet_s: float, result: ReadResult) -> bool:
        if result.records or self._wait_s is None:
            return False

        return quiet_s >= self._wait_s

    async def _sleep(self, until: float) -> None:
        loop = asyncio.get_running_loop()
        timer = loop.call_at(until, self._wake.set)
        try:
            await self._wake.wait()
        finally:
            timer.cancel()

    async def _send_batch(self, result: ReadResult) -> None:
        size = sum(record.metered_bytes for record in result.records)
        last = result.records[-1].seq_num
        self._next = last + 1
        self._count += len(result.records)
        self._bytes += size
        self._limit = _reduce(self._limit, len(result.records), size)
        await self._exchange.send_chunk(
            self._wire.batch(result, last=last, count=self._count, size=self._bytes)
        )

    async def _send_ping(self, tail: StreamPosition) -> None:
        await self._exchange.send_chunk(self._wire.ping(tail))


def _reduce(limit: ReadLimit, count: int, size: int) -> ReadLimit:
    return ReadLimit(
        None if limit.count is None else limit.count - count,
        None if limit.size is None else limit.size - size,
        limit.until,
    )
