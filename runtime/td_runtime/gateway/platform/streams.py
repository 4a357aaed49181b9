"""Streams: append, read back, follow. The face of the store on the event loop."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, TypeVar

import msgspec

from td_runtime.gateway.errors import SessionBrokenError, StreamNotFoundError
from td_runtime.gateway.platform.reading import ReadLimit, ReadResult, find, look_up, read
from td_runtime.gateway.platform.records import Batch, StreamPosition
from td_runtime.gateway.platform.sequencer import (
    KEEPS_ITS_OWN_TIME,
    PLAIN,
    AppendAck,
    Creation,
    Sequencer,
)
from td_runtime.gateway.platform.storage import Storage
from td_runtime.gateway.platform.stream_config import parse_config

__all__ = ["Creation", "Series", "Streams"]

T = TypeVar("T")

NAME_BYTES_MAX: Final = 512


class StreamInfo(msgspec.Struct, frozen=True):
    """A stream without its records. ``created_at`` is in milliseconds, ``config`` JSON."""

    name: str
    created_at: int
    config: str


class Series:
    """Appends in order, of which none is stored after one that failed.

    ``join`` is called on the event loop, the others on the writer thread.
    """

    def __init__(self) -> None:
        self._joined = 0
        self._failed: int | None = None

    def join(self) -> int:
        """Take the next place."""
        self._joined += 1
        return self._joined

    def check(self, place: int) -> None:
        """Refuse to go on.

        Raises:
            SessionBrokenError: One at an earlier place has failed.
        """
        if self._failed is not None and self._failed < place:
            raise SessionBrokenError("an earlier batch of the session failed")

    def fail(self, place: int) -> None:
        """Note a failure. An append may be tried twice, so the earliest counts."""
        self._failed = place if self._failed is None else min(place, self._failed)


class Streams:
    """All streams, from the event loop.

    Reads run on one thread of their own, over a connection of their own, so that a cold read
    from disk does not hold up the loop.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._sequencer = Sequencer()
        storage.join(self._sequencer)
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="platform-reader")
        self._connection = storage.connect_reader()
        self._followers: dict[str, set[asyncio.Event]] = {}

    async def append(
        self,
        name: str,
        batch: Batch,
        *,
        is_creating: bool = False,
        creation: Creation | None = None,
    ) -> AppendAck:
        """Append a batch atomically; returns when it is on disk.

        Args:
            name: The stream.
            batch: What to append.
            is_creating: Create the stream if it is not there, with nothing configured.
            creation: The same, with a configuration.

        Raises:
            StreamNotFoundError: There is no such stream and it is not to be created.
            ConditionFailedError: The batch's own condition does not hold.
            StoreUnavailableError: Nothing was stored.
        """
        return await self.submit(name, batch, creation=creation or (PLAIN if is_creating else None))

    def submit(
        self, name: str, batch: Batch, *, creation: Creation | None, series: Series | None = None
    ) -> asyncio.Future[AppendAck]:
        """Start an append without waiting for it; the future resolves when it is on disk.

        Args:
            name: The stream.
            batch: What to append; stored in the order of the calls.
            creation: How the stream is created if it is not there, None if it is not.
            series: Appends of which none is stored after one of them failed.

        Raises:
            GatewayError: Through the future, as from ``append``; ``SessionBrokenError`` if an
                earlier one of the series failed.
        """
        if series is None:
            return self._storage.write(
                lambda connection: self._sequencer.append(
                    connection, name, batch, creation=creation
                ),
                after=lambda _ack: self._wake(name),
            )
        place = series.join()

        def operate(connection: sqlite3.Connection) -> AppendAck:
            series.check(place)
            return self._sequencer.append(connection, name, batch, creation=creation)

        return self._storage.write(
            operate, after=lambda _ack: self._wake(name), on_failed=lambda: series.fail(place)
        )

    def ensure(self, connection: sqlite3.Connection, name: str) -> None:
        """Create a stream as part of somebody's write on the writer thread."""
        self._sequencer.ensure(connection, name)

    async def create(self, name: str, creation: Creation) -> StreamInfo:
        """Create a stream.

        Raises:
            NameTakenError: It is there, and another request made it.
            StoreUnavailableError: Nothing was stored.
        """
        created_at = await self._storage.write(
            lambda connection: self._sequencer.create(connection, name, creation)
        )
        return StreamInfo(name, created_at, creation.config)

    async def ensure_created(self, name: str, creation: Creation) -> None:
        """Create a stream if it is not there.

        Raises:
            StoreUnavailableError: Nothing was stored.
        """
        await self._storage.write(
            lambda connection: self._sequencer.ensure(connection, name, creation)
        )

    async def configure(self, name: str, config: str) -> None:
        """Give a stream another configuration.

        Raises:
            StreamNotFoundError: There is no such stream.
        """
        await self._storage.write(
            lambda connection: self._sequencer.configure(connection, name, config)
        )

    async def delete(self, name: str) -> None:
        """Delete a stream and all it holds; its readers are told.

        Raises:
            StreamNotFoundError: There is no such stream.
        """
        await self._storage.write(
            lambda connection: self._sequencer.delete(connection, name),
            after=lambda _none: self._wake(name),
        )

    async def look_up(self, name: str) -> StreamInfo:
        """What is known of a stream besides its records.

        Raises:
            StreamNotFoundError: There is no such stream.
        """
        found = await self.list_page(name, after="", limit=1)
        if not found or found[0].name != name:
            raise StreamNotFoundError(name)

        return found[0]

    async def list_page(self, prefix: str, *, after: str, limit: int) -> list[StreamInfo]:
        """Streams by name: those that begin with ``prefix`` and come after ``after``.

        A basin's streams have its name and a NUL before their own; without one in the prefix, the
        control plane's are meant.
        """
        first = max(after, prefix)
        rows = await self._on_reader(
            lambda: self._connection.execute(
                "SELECT name, created_at, config FROM streams WHERE name >= :first"
                " AND name < :end AND name <> :after"
                " AND (:is_basin OR instr(CAST(name AS BLOB), x'00') = 0)"
                " ORDER BY name LIMIT :limit",
                {
                    "first": first,
                    "end": prefix + "\U0010ffff",
                    "after": after,
                    "is_basin": "\0" in prefix,
                    "limit": limit,
                },
            ).fetchall()
        )
        return [StreamInfo(*row) for row in rows]

    async def tail(self, name: str) -> StreamPosition:
        """The next sequence number and the last timestamp.

        Raises:
            StreamNotFoundError: There is no such stream.
        """
        return (await self._on_reader(lambda: look_up(self._connection, name)))[1]

    async def tail_or_create(self, name: str) -> StreamPosition:
        """The tail of a stream, which is created if it is not there.

        Raises:
            StoreUnavailableError: It was not there and could not be created.
        """
        try:
            return await self.tail(name)
        except StreamNotFoundError:
            await self._storage.write(lambda connection: self.ensure(connection, name))
            return await self.tail(name)

    async def read(self, name: str, start: int, limit: ReadLimit) -> ReadResult:
        """Read from sequence number ``start``, at most 1000 records and 1 MiB at a time.

        Raises:
            StreamNotFoundError: There is no such stream.
        """
        return await self._on_reader(lambda: read(self._connection, name, start, limit))

    async def find(self, name: str, timestamp: int) -> int:
        """The first sequence number at or after a timestamp; the tail if there is none.

        Raises:
            StreamNotFoundError: There is no such stream.
        """
        return await self._on_reader(lambda: find(self._connection, name, timestamp))

    async def counts(self) -> dict[str, int]:
        """How many records each stream has ever taken; the 10,000 newest streams."""
        rows = await self._on_reader(
            lambda: self._connection.execute(
                "SELECT name, next_seq FROM streams ORDER BY id DESC LIMIT 10000"
            ).fetchall()
        )
        return {name: count for name, count in rows if count and "\0" not in name}

    async def expire(self, *, before_ms: int) -> int:
        """Delete what was stored before a time, in small steps; returns how many records."""
        total = 0
        while step := await self._storage.write(
            lambda connection: self._sequencer.expire(connection, before_ms=before_ms)
        ):
            total += step
        total += await self._expire_configured()
        first_id: int | None = 0
        while first_id is not None:
            forget = partial(self._sequencer.forget_idle, before_ms=before_ms, first_id=first_id)
            first_id = await self._storage.write(forget)

        return total

    async def _expire_configured(self) -> int:
        """Delete from the streams that say how long they keep their records."""
        rows = await self._on_reader(
            lambda: self._connection.execute(
                f"SELECT id, config FROM streams WHERE {KEEPS_ITS_OWN_TIME}"  # noqa: S608  a constant
            ).fetchall()
        )
        total = 0
        for stream_id, config in rows:
            retention_s = parse_config(config).retention_s
            if retention_s is None:
                continue
            before_ms = int((time.time() - retention_s) * 1000)
            expire = partial(
                self._sequencer.expire_stream, stream_id=stream_id, before_ms=before_ms
            )
            while step := await self._storage.write(expire):
                total += step

        return total

    def follow(self, name: str, wake: asyncio.Event) -> None:
        """Set ``wake`` at every append to the stream until ``unfollow``."""
        self._followers.setdefault(name, set()).add(wake)

    def unfollow(self, name: str, wake: asyncio.Event) -> None:
        """Stop waking."""
        followers = self._followers.get(name, set())
        followers.discard(wake)
        if not followers:
            self._followers.pop(name, None)

    def wake_all(self) -> None:
        """Wake every follower, so that it sees that the gateway is stopping."""
        for name in list(self._followers):
            self._wake(name)

    def close(self) -> None:
        """Stop the reader; call before the storage is closed."""
        self._reader.shutdown()
        self._connection.close()

    def _wake(self, name: str) -> None:
        for wake in self._followers.get(name, ()):
            wake.set()

    async def _on_reader(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._reader, function)
