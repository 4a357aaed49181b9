"""Read sessions: records as server-sent events, from a place in a stream onwards."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable, Iterable
from typing import Final, Literal

import msgspec

from td_runtime.gateway.exchange import Exchange
from td_runtime.gateway.platform.reading import ReadLimit, ReadResult, SequencedRecord
from td_runtime.gateway.platform.records import StreamPosition
from td_runtime.gateway.platform.streams import Streams

PING_INTERVAL_S: Final = 5.0
SSE_HEADERS: Final = (
    ("content-type", "text/event-stream"),
    ("cache-control", "no-cache, no-transform"),
    ("x-accel-buffering", "no"),
)

Format = Literal["raw", "base64"]


class RecordOut(msgspec.Struct, frozen=True, omit_defaults=True):
    """A record as JSON; empty headers and an empty body are left out, as S2 does."""

    seq_num: int
    timestamp: int
    headers: list[tuple[str, str]] = []
    body: str = ""


class ReadBatch(msgspec.Struct, frozen=True, omit_defaults=True):
    """The JSON of one read; ``tail`` is there when nothing lies beyond the records."""

    records: list[RecordOut]
    tail: StreamPosition | None = None


class Ping(msgspec.Struct, frozen=True):
    """Sent while there is nothing to send."""

    timestamp: int
    tail: StreamPosition


class Place(msgspec.Struct, frozen=True):
    """Where a session starts and how far it goes.

    ``wait_s`` is how long it may stay at the tail without a record, None for ever.
    """

    start: int
    limit: ReadLimit
    wait_s: float | None


_encode = msgspec.json.Encoder().encode


def encode_batch(result: ReadResult, format_: Format) -> bytes:
    """A read as JSON."""
    convert = _to_base64 if format_ == "base64" else _to_text
    records = [_convert(record, convert) for record in result.records]
    is_at_tail = result.is_at_tail or not records

    return _encode(ReadBatch(records, result.tail if is_at_tail else None))


class ReadSession:
    """Sends a stream to one client until a limit, the wait, the client or the gateway ends it.

    A session that ends by itself closes with ``data: [DONE]``; one that the gateway ends breaks
    off, so that the client comes back with its last event id.
    """

    def __init__(
        self,
        streams: Streams,
        exchange: Exchange,
        name: str,
        place: Place,
        *,
        format_: Format,
        stopping: asyncio.Event,
    ) -> None:
        self._streams = streams
        self._exchange = exchange
        self._name = name
        self._next = place.start
        self._limit = place.limit
        self._wait_s = place.wait_s
        self._format: Format = format_
        self._stopping = stopping
        self._wake = asyncio.Event()
        self._count = 0
        self._bytes = 0

    async def run(self, headers: Iterable[tuple[str, str]] = ()) -> None:
        """Answer the exchange, from head to end."""
        self._streams.follow(self._name, self._wake)
        try:
            if not await self._exchange.start_stream((*SSE_HEADERS, *headers)):
                return
            async with self._exchange.watch(self._wake.set):
                await self._send_all()
        finally:
            self._streams.unfollow(self._name, self._wake)

    @property
    def _is_cut(self) -> bool:
        return self._exchange.is_gone or self._stopping.is_set()

    async def _send_all(self) -> None:
        loop = asyncio.get_running_loop()
        quiet_since, ping_at = loop.time(), loop.time()
        while not self._is_cut:
            self._wake.clear()
            result = await self._streams.read(self._name, self._next, self._limit)
            if result.records:
                await self._send_batch(result)
                quiet_since = ping_at = loop.time()
            if result.is_spent or self._is_over(loop.time() - quiet_since, result):
                return await self._exchange.send_chunk(b"data: [DONE]\n\n", is_last=True)
            if result.records:
                continue
            if loop.time() >= ping_at:
                await self._send_ping(result.tail)
                ping_at = loop.time() + PING_INTERVAL_S
            await self._sleep(min(ping_at, self._deadline(quiet_since)))
        return None

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
        event_id = f"{last},{self._count},{self._bytes}"
        data = encode_batch(result, self._format)
        await self._exchange.send_chunk(
            b"event: batch\nid: %b\ndata: %b\n\n" % (event_id.encode(), data)
        )

    async def _send_ping(self, tail: StreamPosition) -> None:
        ping = _encode(Ping(int(time.time() * 1000), tail))
        await self._exchange.send_chunk(b"event: ping\ndata: %b\n\n" % ping)


def _reduce(limit: ReadLimit, count: int, size: int) -> ReadLimit:
    return ReadLimit(
        None if limit.count is None else limit.count - count,
        None if limit.size is None else limit.size - size,
        limit.until,
    )


def _convert(record: SequencedRecord, convert: Callable[[bytes], str]) -> RecordOut:
    headers = [(convert(name), convert(value)) for name, value in record.headers or ()]
    return RecordOut(record.seq_num, record.timestamp, headers, convert(record.body))


def _to_text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def _to_base64(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")
