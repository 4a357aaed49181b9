"""
What comes in from a chat's clients, on the runtime loop: messages wait for a turn, stops act.

One record is dealt with at a time, in order. Everything else asks with `submit`, so that a message
is taken, and a turn ended, at one point of that order: the cursor of a turn-complete is exact.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import structlog

from td_worker.chat.inbox import Inbox, Pending
from td_worker.chat.payload import ChatPayload, InputRecord, parse_input
from td_worker.chat.stop import StopSignal
from td_worker.errors import ControlPlaneError
from td_worker.tail import Record

log = structlog.get_logger()

Offer = Callable[[ChatPayload], Future[bool]]
"""Shows a message to somebody; the future says whether they took it."""


class LastTurn(NamedTuple):
    """What the last turn-complete record of a chat says."""

    seq: int
    """Its own number on `out`."""
    resume_from: int | None
    applied_through: int | None
    run_id: str | None = None
    """Whose turn it was; None where nobody says."""


class Checkpoint(NamedTuple):
    """How far a chat's `in` has been dealt with at the end of a turn."""

    cursor: int | None
    consumed: int | None
    access_token: str | None


class Incoming(Protocol):
    """The session's `in`, on the runtime loop."""

    async def last_turn(self) -> LastTurn | None:
        """Return what the last turn left on `out`, None before the first."""
        ...

    def records(self, after: int | None) -> AsyncIterator[Record]:
        """Yield each record behind `after`, for ever."""
        ...

    async def give_back(self, records: list[Record]) -> None:
        """Leave records that were read, and not dealt with, to the next reader."""
        ...

    async def access_token(self, ttl: float) -> str | None:
        """Return a fresh public access token for the chat's client, None without one."""
        ...


@dataclass(slots=True, kw_only=True, eq=False)
class Taken:
    """A message whose turn has come."""

    seq: int | None
    payload: ChatPayload
    stop: StopSignal
    problem: str | None = None


class Mailbox:
    """One execution's view of a chat's `in`. All methods belong to the runtime loop."""

    def __init__(self, incoming: Incoming, *, chat_id: str) -> None:
        self._incoming = incoming
        self._chat_id = chat_id
        self._inbox = Inbox()
        self._turn: StopSignal | None = None
        self._signals: list[StopSignal] = []
        self._offers: list[Offer] = []
        self._arrived = asyncio.Event()
        self._listening: asyncio.Task[None] | None = None
        self._opening = asyncio.Lock()
        self._error: BaseException | None = None
        # A record must not come in between what a new observer is shown and the place it then gets:
        # he would never see it.
        self._dealing = asyncio.Lock()

    async def open(self) -> LastTurn | None:
        """Find where the last turn has left off, and listen from there; once.

        Raises:
            ControlPlaneError: The session cannot be read.
        """
        async with self._opening:
            if self._listening is not None:
                self._listen_again()
                return None
            last = await self._incoming.last_turn()
            if self._error is not None:
                raise self._error  # the chat was left meanwhile: nobody would end the listening
            after = None if last is None else last.resume_from
            applied = None if last is None else last.applied_through
            self._inbox.resume(resume_from=after, applied_through=applied)
            self._listen_behind(after)

            return last

    async def close(self) -> None:
        """Listen no more; what waits is left to the next block that serves this chat."""
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.wait({self._listening})
        self._error = asyncio.CancelledError("the chat was left")
        self._arrived.set()
        if left := self._inbox.leave():
            await self._incoming.give_back(left)

    async def put(self, payload: ChatPayload) -> None:
        """Have the message of the run's own payload answered first."""
        self._inbox.put(payload)
        self._arrived.set()

    async def take(self, timeout: float | None) -> Taken | None:
        """
        Return the next message and begin its turn; None when the time is over.

        Args:
            timeout: Seconds to wait for one; None for as long as it takes.

        Raises:
            SessionReadError: There is nothing to wait for: `in` cannot be read.
        """
        pending = await self._next(timeout)
        if pending is None:
            return None
        self._turn = StopSignal()
        if pending.stopped:
            self._turn.set()

        return Taken(
            seq=pending.seq,
            payload=pending.payload,
            stop=self._turn,
            problem=pending.problem,
        )

    async def end_turn(self, token_ttl: float) -> Checkpoint:
        """
        End the turn under way and return how far all is dealt with.

        Args:
            token_ttl: Seconds that the client's next token is good for.
        """
        token: str | None = None
        try:
            token = await self._incoming.access_token(token_ttl)
        except ControlPlaneError as error:
            # Its client has an older one, and must hear of the end of its turn in any case.
            log.warning("chat.token_failed", chat_id=self._chat_id, reason=str(error))
        self._turn = None

        return Checkpoint(self._inbox.cursor, self._inbox.consumed, token)

    async def once(self, timeout: float | None) -> Pending | None:
        """Return the next message, which then gets no turn; None when the time is over."""
        await self.open()

        return await self._next(timeout)

    async def observe(self, offer: Offer) -> None:
        """Show `offer` every message that waits or comes; one that it takes gets no turn."""
        await self.open()
        async with self._dealing:
            for pending in self._inbox.waiting():
                if pending.problem is None and await _is_taken([offer], pending.payload):
                    self._inbox.remove(pending)
            self._offers.append(offer)

    async def ignore(self, offer: Offer) -> None:
        """Show `offer` nothing more."""
        with contextlib.suppress(ValueError):
            self._offers.remove(offer)

    async def watch_stops(self, signal: StopSignal) -> None:
        """Set `signal` whenever a client asks to stop."""
        await self.open()
        self._signals.append(signal)

    async def ignore_stops(self, signal: StopSignal) -> None:
        """Set `signal` no more."""
        with contextlib.suppress(ValueError):
            self._signals.remove(signal)

    async def cursor(self) -> int | None:
        """Return the number up to which everything is dealt with; None before the first."""
        return self._inbox.cursor

    def waits(self) -> bool:
        """Say whether a message waits; for any thread."""
        return len(self._inbox) > 0

    def peek(self) -> ChatPayload | None:
        """Return the next message without taking it; for any thread."""
        pending = self._inbox.peek()

        return None if pending is None else pending.payload

    # -------------------------------------------------------------------------------------------

    async def _next(self, timeout: float | None) -> Pending | None:
        """Return the first message that waits, once one does."""
        self._listen_again()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                # Again and again: of several that wait here, only one gets what has arrived.
                while not self.waits() and self._error is None:
                    self._arrived.clear()
                    await self._arrived.wait()
        if self._error is not None and not self.waits():
            raise self._error

        return self._inbox.take()

    def _listen_behind(self, after: int | None) -> None:
        self._listening = asyncio.create_task(self._listen(after), name=f"chat {self._chat_id}")

    def _listen_again(self) -> None:
        """Try anew what has failed, of which those have heard who waited then.

        Not what was cancelled: the attempt ends, or the chat was left.
        """
        if isinstance(self._error, Exception):
            self._error = None
            self._listen_behind(self._inbox.received)

    async def _listen(self, after: int | None) -> None:
        try:
            async for record in self._incoming.records(after):
                await self._receive(record, parse_input(record.data))
        # Also of a cancellation, by which an attempt ends: a plain `def` task waits in a thread.
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001
            self._error = error
            self._arrived.set()

    async def _receive(self, origin: Record, record: InputRecord) -> None:
        seq = origin.seq_num
        if record.problem is not None:
            log.warning("chat.input_ignored", chat_id=self._chat_id, seq=seq, reason=record.problem)
        try:
            async with self._dealing:
                if record.payload is None or not await _is_taken(self._offers, record.payload):
                    self._put_in(origin, record)
                else:
                    self._inbox.skip(seq)
        except asyncio.CancelledError:  # the chat is left, and nobody has said yet that he takes it
            self._inbox.receive(seq, record, in_turn=False, origin=origin)
            raise

    def _put_in(self, origin: Record, record: InputRecord) -> None:
        seq = origin.seq_num
        if self._inbox.receive(seq, record, in_turn=self._turn is not None, origin=origin):
            self._stop_turn(record)
        if record.kind == "stop":
            for signal in self._signals:
                signal.set(record.text)
        if len(self._inbox):
            self._arrived.set()

    def _stop_turn(self, record: InputRecord) -> None:
        if self._turn is not None:
            self._turn.set(record.text)


async def _is_taken(offers: list[Offer], payload: ChatPayload) -> bool:
    if not offers:
        return False
    answers = await asyncio.gather(
        *(asyncio.wrap_future(offer(payload)) for offer in offers), return_exceptions=True
    )

    return any(answer is True for answer in answers)
