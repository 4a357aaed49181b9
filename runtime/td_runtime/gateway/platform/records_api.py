"""The data plane of one stream: append to it, read it, ask for its tail."""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from td_runtime.gateway.errors import (
    ConfigInvalidError,
    HeaderInvalidError,
    RangeUnsatisfiableError,
    RecordsInvalidError,
    StreamNotFoundError,
)
from td_runtime.gateway.exchange import Exchange, Reply, json_reply
from td_runtime.gateway.platform import dialect
from td_runtime.gateway.platform.append_session import AppendSession
from td_runtime.gateway.platform.basins import Basin
from td_runtime.gateway.platform.content_encoding import accepted
from td_runtime.gateway.platform.holder import Holder
from td_runtime.gateway.platform.queries import (
    NUMBER_MAX,
    Start,
    cap,
    parse_limit,
    parse_start,
    parse_wait,
    resume,
)
from td_runtime.gateway.platform.read_session import Place, ReadSession
from td_runtime.gateway.platform.reading import ReadLimit, ReadResult
from td_runtime.gateway.platform.records import TIMESTAMP_MAX, StreamPosition
from td_runtime.gateway.platform.stream_config import DEFAULT, StreamConfig, encode_config
from td_runtime.gateway.platform.streams import Creation, Streams
from td_runtime.gateway.platform.wires import Events, Frames, Wire

UNARY_WAIT_S_MAX: Final = 60
CONFIG_HEADER: Final = "s2-stream-config"


class Target(msgspec.Struct, frozen=True):
    """Which stream a request is for, and who sends it."""

    holder: Holder
    basin: Basin
    name: str  # as it is stored


class RecordsApi:
    """Answers requests below ``/v1/streams/<name>/records``."""

    def __init__(self, streams: Streams, stopping: asyncio.Event) -> None:
        self._streams = streams
        self._stopping = stopping

    async def append(self, exchange: Exchange, target: Target) -> Reply | None:
        """Append one batch, or open a session."""
        creation = _creation(exchange, target)
        if dialect.asks_for_session(exchange):
            target.holder.rights.require({"append"})
            session = AppendSession(
                self._streams,
                exchange,
                target.name,
                holder=target.holder,
                creation=creation,
                stopping=self._stopping,
            )
            await session.run()
            return None
        spoken = dialect.spoken(exchange)
        batch = spoken.parse_append(await dialect.read_body(exchange))
        target.holder.admit(batch)
        ack = await self._streams.append(target.name, batch, creation=creation)
        wanted = dialect.wanted(exchange)

        return Reply(200, wanted.encode_ack(ack), wanted.content_type)

    async def check_tail(self, exchange: Exchange, target: Target) -> Reply:
        """Tell the tail."""
        target.holder.rights.require({"check-tail"})
        return json_reply(200, {"tail": await self._tail(exchange, target)})

    async def read(self, exchange: Exchange, target: Target) -> Reply | None:
        """Read once, or open a session."""
        target.holder.rights.require({"read"})
        query = exchange.query
        start, limit, wait_s = parse_start(query), parse_limit(query), parse_wait(query)
        if dialect.asks_for_session(exchange):
            wire: Wire = Frames(accepted(exchange.headers.get("accept-encoding")))
        elif dialect.asks_for_events(exchange):
            wire = Events(dialect.parse_format(exchange))
            start, limit = resume(exchange.headers.get("last-event-id"), start, limit)
        else:
            place = await self._place(
                exchange, target, start, cap(limit), min(wait_s or 0, UNARY_WAIT_S_MAX)
            )
            return await self._read_once(exchange, target.name, place)
        place = await self._place(exchange, target, start, limit, wait_s)
        session = ReadSession(
            self._streams,
            exchange,
            target.name,
            place,
            wire=wire,
            holder=target.holder,
            stopping=self._stopping,
        )
        await session.run()

        return None

    async def _place(
        self,
        exchange: Exchange,
        target: Target,
        start: Start,
        limit: ReadLimit,
        wait_s: float | None,
    ) -> Place:
        """Turn what was asked for into a sequence number.

        Raises:
            RangeUnsatisfiableError: It is beyond the tail, or at it without leave to wait.
            RecordsInvalidError: It starts at or after the time it is to end before.
        """
        if start.timestamp is not None and start.timestamp >= (limit.until or NUMBER_MAX + 1):
            raise RecordsInvalidError("start `timestamp` exceeds or equal to `until`")
        tail = await self._tail(exchange, target)
        if wait_s is None and limit.is_bounded:
            wait_s = 0
        seq_num = await self._resolve(target.name, start, tail)
        if seq_num > tail.seq_num and start.is_clamped:
            seq_num = tail.seq_num
        if seq_num > tail.seq_num or (seq_num == tail.seq_num and wait_s == 0):
            raise RangeUnsatisfiableError(seq_num=tail.seq_num, timestamp=tail.timestamp)

        return Place(seq_num, limit, wait_s)

    async def _tail(self, exchange: Exchange, target: Target) -> StreamPosition:
        """The tail; a stream may be created by being looked at, if its basin says so."""
        try:
            return await self._streams.tail(target.name)
        except StreamNotFoundError:
            creation = _creation(exchange, target)
            if creation is None or not target.basin.config.create_stream_on_read:
                raise
            await self._streams.ensure_created(target.name, creation)
            return await self._streams.tail(target.name)

    async def _resolve(self, name: str, start: Start, tail: StreamPosition) -> int:
        if start.seq_num is not None:
            return start.seq_num
        if start.timestamp is not None:
            return await self._streams.find(name, min(start.timestamp, TIMESTAMP_MAX))

        return max(0, tail.seq_num - (start.tail_offset or 0))

    async def _read_once(self, exchange: Exchange, name: str, place: Place) -> Reply:
        result = await self._streams.read(name, place.start, place.limit)
        if not result.records and not result.is_spent and place.wait_s:
            result = await self._long_poll(exchange, name, place)
        if not result.records and not result.is_spent and not place.wait_s:  # all was trimmed
            tail = result.tail
            raise RangeUnsatisfiableError(seq_num=tail.seq_num, timestamp=tail.timestamp)
        wanted = dialect.wanted(exchange)

        return dialect.reply_with(exchange, wanted.content_type, wanted.encode_batch(result))

    async def _long_poll(self, exchange: Exchange, name: str, place: Place) -> ReadResult:
        wake = asyncio.Event()
        timer = asyncio.get_running_loop().call_later(place.wait_s or 0, wake.set)
        self._streams.follow(name, wake)
        try:
            async with exchange.watch(wake.set):
                # Appended between the first look and ``follow``? Then it is here already.
                result = await self._streams.read(name, place.start, place.limit)
                if result.records:
                    return result
                await wake.wait()
                return await self._streams.read(name, place.start, place.limit)
        finally:
            timer.cancel()
            self._streams.unfollow(name, wake)


def _creation(exchange: Exchange, target: Target) -> Creation | None:
    """How the stream is made if it is not there, None if the bearer or the basin forbids it."""
    basin, config = target.basin.config, exchange.headers.get(CONFIG_HEADER)
    is_wanted = (
        basin.create_stream_on_append if exchange.method == "POST" else basin.create_stream_on_read
    )
    if not is_wanted or not target.holder.rights.may("create-stream"):
        return None
    if config is None and basin.default_stream_config is None:
        return Creation()

    defaults = basin.default_stream_config or DEFAULT
    return Creation(encode_config(_parse_config(config).over(defaults)))


def _parse_config(text: str | None) -> StreamConfig:
    try:
        config = msgspec.json.decode(text or "{}", type=StreamConfig)
        config.check()
    except (msgspec.DecodeError, ConfigInvalidError) as error:
        raise HeaderInvalidError(f"invalid header `{CONFIG_HEADER}`: {error}") from error

    return config
