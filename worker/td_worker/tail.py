"""
What comes in, read once and handed out in order: the tail of one channel within one execution.

A tail is opened by the first handler or waiter and lives on the runtime loop. A record goes to the
first that waits for one, and to every handler; one that nobody takes stays in the buffer until
somebody does. Nothing buffered is ever dropped: when too much waits, the tail stops reading, and
the rest stays where it is durable.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import msgspec
import structlog

from td_worker.errors import ControlPlaneError, SessionReadError
from td_worker.streams.parts import Part
from td_worker.streams.subscription import Opener, ReadPolicy, Subscription

log = structlog.get_logger()

READ_TIMEOUT: Final = 600
"""Seconds of silence after which the server ends a body: the longest it allows."""

_STALL: Final = 60.0
"""Seconds without even a ping after which a connection counts as dead."""

MAX_BUFFERED: Final = 10_000
"""Records that wait for somebody to take them before the tail stops reading."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """
    One record of a channel or an input stream.

    ```python
    def note(record: sessions.Record) -> None:
        print(record.seq_num, record.timestamp, record.data)

    in_ = sessions.open("order-17").in_
    in_.on_record(note)
    first = (await in_.once()).unwrap()
    ```
    """

    seq_num: int
    data: Any
    timestamp: int = 0
    """Milliseconds since the epoch, by the stream store's clock."""


class Handler(Protocol):
    """What a tail offers its records to; called on the runtime loop."""

    def offer(self, record: Record) -> Future[bool]:
        """Have the record looked at; the future says whether it was taken."""
        ...

    def release(self) -> None:
        """Nothing more will be offered; what was taken is still worked on."""
        ...

    def close(self) -> None:
        """Work on nothing more."""
        ...


class Spawner(Protocol):
    """Where a tail's work is done: the stream client."""

    def submit(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Run `work` on the runtime loop."""
        ...

    def call(self, function: Callable[[], object]) -> None:
        """Call `function` on the runtime loop, soon."""
        ...


@dataclass(slots=True, eq=False)
class Waiter:
    """One that waits for one record."""

    future: Future[Record] = field(default_factory=Future)
    cursor_before: int | None = None
    """How far all was taken before its record."""


class Tail:
    """
    The tail of one key. `take`, `add`, `remove`, `give_back` and `peek` are for any thread.

    Args:
        name: What is read, for the log.
        opener: Opens one connection after a cursor.
        loop: Where the work is done.
        takes_on_sight: A record that some handler has seen counts as taken, as for input streams.
    """

    def __init__(
        self, name: str, opener: Opener, loop: Spawner, *, takes_on_sight: bool = False
    ) -> None:
        self.name = name
        self._subscription = Subscription(opener, policy=ReadPolicy(stall_timeout=_STALL))
        self._loop = loop
        self._takes_on_sight = takes_on_sight
        self._buffer: deque[Record] = deque()
        self._waiters: deque[Waiter] = deque()
        self._handlers: list[Handler] = []
        self._received: int | None = None
        self._taken: int | None = None
        self._ignored_until: int | None = None
        self._failures = 0
        self._pump: asyncio.Task[None] | None = None
        self._closed = False
        self._interrupted: BaseException | None = None
        # One record is dealt with at a time, from offer to buffer, so that order is kept.
        self._turn = asyncio.Lock()
        self._room = asyncio.Event()

    # --- any thread ----------------------------------------------------------------------------

    @property
    def last_received(self) -> int | None:
        """The number of the last record that was read; None before any."""
        return self._received

    @property
    def last_taken(self) -> int | None:
        """The highest number of a record that somebody has taken; None before any."""
        return self._taken

    def peek(self) -> Record | None:
        """Return the first record that nobody has taken yet, and leave it there."""
        try:
            return self._buffer[0]
        except IndexError:
            return None

    def take(self) -> Waiter:
        """Wait for the next record; the waiter's future has it, and may be cancelled."""
        waiter = Waiter()
        self._loop.submit(self._take(waiter))

        return waiter

    def give_back(self, waiter: Waiter) -> None:
        """Undo a `take` whose record nobody has looked at, since its caller was cancelled."""
        if not waiter.future.cancel():
            self._loop.submit(self._give_back(waiter))

    def add(self, handler: Handler) -> None:
        """Offer what is buffered to `handler`, then everything that comes."""
        self._loop.submit(self._add(handler))

    def remove(self, handler: Handler) -> None:
        """Offer nothing more to `handler`."""
        self._loop.call(lambda: self._forget(handler))

    def resume_after(self, seq_num: int) -> None:
        """Read on after this record; for a tail that has not been opened."""
        if self._received is None or seq_num > self._received:
            self._received = seq_num
            self._subscription.cursor = str(seq_num)
        if self._taken is None or seq_num > self._taken:
            self._taken = seq_num

    def ignore_until(self, timestamp: int | None) -> None:
        """Drop what comes with this timestamp (in milliseconds) or an earlier one; None: nothing.

        For records that an earlier turn has dealt with; they are not buffered.
        """
        self._ignored_until = timestamp

    def fail_waiters(self, error: BaseException) -> None:
        """Have all that wait, now or later, raise `error`."""
        self._interrupted = error
        self._loop.call(lambda: self._fail(error))

    def close(self) -> None:
        """Stop reading, for good."""
        with contextlib.suppress(Exception):  # the loop is gone, and the tail with it
            self._loop.call(self._close)

    # --- runtime loop: who wants records -------------------------------------------------------

    async def _take(self, waiter: Waiter) -> None:
        async with self._turn:
            self._waiters.append(waiter)
            self._serve_waiters()
        if self._interrupted is not None:
            self._fail(self._interrupted)
        if self._waiters:
            self._open()

    async def _give_back(self, waiter: Waiter) -> None:
        async with self._turn:
            if waiter.future.cancelled() or waiter.future.exception() is not None:
                return
            record = waiter.future.result()
            self._keep([record])
            if self._taken == record.seq_num:
                self._taken = waiter.cursor_before
            self._serve_waiters()

    async def restore(self, records: list[Record]) -> None:
        """Have these handed out once more: who took them leaves, and has not dealt with them."""
        async with self._turn:
            self._keep(records)
            numbers = {record.seq_num for record in records}
            while self._taken is not None and self._taken in numbers:
                self._taken = self._taken - 1 if self._taken > 0 else None
            self._serve_waiters()

    def _keep(self, records: list[Record]) -> None:
        """Put records that were taken back into their places in the buffer."""
        kept = {record.seq_num: record for record in (*self._buffer, *records)}
        self._buffer = deque(kept[number] for number in sorted(kept))

    async def _add(self, handler: Handler) -> None:
        async with self._turn:
            self._handlers.append(handler)
            for record in list(self._buffer):
                if await self._offer(record, [handler]):
                    self._buffer.remove(record)
                    self._note_taken(record)
            self._make_room()
        self._open()

    def _forget(self, handler: Handler) -> None:
        if handler in self._handlers:
            self._handlers.remove(handler)
            handler.release()

    def _fail(self, error: BaseException) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if waiter.future.set_running_or_notify_cancel():
                waiter.future.set_exception(error)

    def _close(self) -> None:
        self._closed = True
        for handler in self._handlers:
            handler.close()
        self._handlers.clear()
        self._fail(asyncio.CancelledError("the run has ended"))
        if self._pump is not None:
            self._pump.cancel()

    # --- runtime loop: records -----------------------------------------------------------------

    async def dispatch(self, record: Record) -> None:
        """Hand one record out, or keep it."""
        async with self._turn:
            self._received = record.seq_num
            if self._ignored_until is not None and record.timestamp <= self._ignored_until:
                return
            self._failures = 0
            waiter = self._next_waiter()
            if waiter is not None:
                self._serve(waiter, record)
            was_seen = await self._offer(record, list(self._handlers))
            if was_seen or waiter is not None:
                self._note_taken(record)
                return
            self._buffer.append(record)
            self._serve_waiters()

    def _serve_waiters(self) -> None:
        """Give what is buffered to those who wait."""
        while self._buffer and (waiter := self._next_waiter()) is not None:
            self._serve(waiter, self._buffer.popleft())
        self._make_room()

    def _next_waiter(self) -> Waiter | None:
        """Return the first that still waits, who is then bound to get a record."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if waiter.future.set_running_or_notify_cancel():
                return waiter

        return None

    def _serve(self, waiter: Waiter, record: Record) -> None:
        waiter.cursor_before = self._taken
        # Before the waiter hears of it: it may ask for the cursor at once.
        self._note_taken(record)
        waiter.future.set_result(record)

    async def _offer(self, record: Record, handlers: list[Handler]) -> bool:
        """Show `record` to every one of `handlers`; say whether one took it."""
        offers = [asyncio.wrap_future(handler.offer(record)) for handler in handlers]
        answers = await asyncio.gather(*offers, return_exceptions=True)

        return any(answer is True for answer in answers) or (self._takes_on_sight and bool(answers))

    def _note_taken(self, record: Record) -> None:
        if self._taken is None or record.seq_num > self._taken:
            self._taken = record.seq_num

    def _make_room(self) -> None:
        if len(self._buffer) < MAX_BUFFERED:
            self._room.set()

    # --- runtime loop: the connection ----------------------------------------------------------

    def _wanted(self) -> bool:
        waits = any(not waiter.future.cancelled() for waiter in self._waiters)

        return (waits or bool(self._handlers)) and not self._closed

    def _open(self) -> None:
        if self._closed:
            self._fail(asyncio.CancelledError("the run has ended"))
        elif self._pump is None or self._pump.done():
            loop = asyncio.get_running_loop()
            self._pump = loop.create_task(self._read_on(), name=f"tail {self.name}")

    async def _read_on(self) -> None:
        """Read, and connect again, as long as anybody wants what comes."""
        clock = asyncio.get_running_loop().time
        while self._wanted():
            connected_at = clock()
            try:
                await self._read_once()
            except ControlPlaneError as error:
                # Whatever may pass by itself was tried again below.
                self._give_up(error, status=error.status)
                return
            except Exception as error:  # noqa: BLE001  whoever waits must hear of it, or hangs
                self._give_up(error, exc_info=error)
                return
            # As often as the official client at most, but without a pause after a connection that
            # has lasted: a message must not wait because ten minutes went by before it.
            pause = reconnect_delay(self._failures) - (clock() - connected_at)
            self._failures += 1
            if pause > 0:
                await asyncio.sleep(pause)

    async def _read_once(self) -> None:
        """Read until the server ends the body, which it does after a time of silence."""
        async with aclosing(self._subscription.batches()) as batches:
            async for parts in batches:
                for part in parts:
                    if (record := read_record(part)) is not None:
                        await self.dispatch(record)
                        await self._wait_for_room()

    async def _wait_for_room(self) -> None:
        if len(self._buffer) >= MAX_BUFFERED:
            self._room.clear()
            log.warning("input.tail_paused", source=self.name, buffered=len(self._buffer))
            await self._room.wait()

    def _give_up(
        self, error: Exception, *, status: int | None = None, exc_info: Exception | None = None
    ) -> None:
        reason = str(error) or type(error).__name__
        log.error("input.tail_failed", source=self.name, reason=reason, exc_info=exc_info)
        refusal = SessionReadError(self.name, status=status, reason=reason)
        refusal.__cause__ = error
        self._fail(refusal)


def reconnect_delay(attempt: float) -> float:
    """
    Return the seconds between a connection of a tail and the next.

    Args:
        attempt: How many have brought nothing, from 0; anything else counts as the whole number
            below it, and as 0 when there is none.
    """
    doublings = int(attempt) if attempt >= 1 else 0

    return min(2.0 ** min(doublings, 30), 30.0) + random.random()  # noqa: S311  spreads load


def read_record(part: Part) -> Record | None:
    """Return the record in a part; None when it has no data or no number."""
    if not part.has_chunk or not part.id.isdecimal():
        return None

    return Record(seq_num=int(part.id), data=parse_twice(part.chunk), timestamp=part.timestamp)


def parse_twice(data: Any) -> Any:
    """
    Return what a record's data says.

    An append through the control plane stores the body as text inside the envelope; what is no
    JSON, or nested deeper than it can be read, is left as it is.
    """
    if not isinstance(data, str):
        return data
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return data
