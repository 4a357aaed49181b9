"""The chat that an execution serves: its writer, its mailbox and the turn under way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

from td_worker.chat.mailbox import LastTurn, Mailbox
from td_worker.chat.output import TurnOutput
from td_worker.chat.response import ResponseWriter, WriteHandle
from td_worker.chat.stop import StopSignal
from td_worker.chat.turn import Turn
from td_worker.context import Execution
from td_worker.errors import NotInChatError, StreamClosedError
from td_worker.session_calls import ChannelSide
from td_worker.tail import Record

__all__ = ["BoundChat", "ChatSession", "bound_chat", "served_chat", "serving"]

T = TypeVar("T")


class ChatSession(Protocol):
    """The session behind a chat; its coroutines belong to the runtime loop."""

    chat_id: str
    """How clients address it."""
    out: ChannelSide
    """Where everything goes."""

    async def last_turn(self) -> LastTurn | None:
        """Return what the last turn left on `out`, None before the first."""
        ...

    def records(self, after: int | None) -> AsyncIterator[Record]:
        """Yield each record of `in` behind `after`, for ever."""
        ...

    async def give_back(self, records: list[Record]) -> None:
        """Leave records that were read, and not dealt with, to the next reader."""
        ...

    async def access_token(self, ttl: float) -> str | None:
        """Return a fresh public access token for its client, valid `ttl` seconds."""
        ...

    async def is_replaced(self) -> bool:
        """Say whether another run serves the session by now."""
        ...

    async def leave(self, reason: str, cursor: int | None, *, waits: bool) -> bool:
        """Have messages that the run leaves behind answered; say whether another run goes on."""
        ...


class BoundChat:
    """One chat, served by one execution. Every method may be called from any thread."""

    def __init__(self, session: ChatSession, execution: Execution) -> None:
        self.session = session
        self.chat_id = session.chat_id
        self.execution = execution
        self.response = ResponseWriter(
            session.out.open,
            execution.opened,
            chat_id=session.chat_id,
        )
        self.mailbox = Mailbox(session, chat_id=session.chat_id)
        self.turn: Turn | None = None
        """The turn under way."""
        self.output: TurnOutput | None = None
        """Where its chunks go."""
        self.end_requested = False

    def write(self, chunk: object) -> WriteHandle:
        """Write one chunk beside those that the handler yields, in order with them."""
        if (output := self.output) is not None:
            output.note(chunk)

        return self.response.write(chunk)

    def on_runtime(self, work: Callable[[Mailbox], Coroutine[Any, Any, T]]) -> Future[T]:
        """Run `work` with the mailbox on the loop that the mailbox belongs to."""
        return self.execution.streams.submit(work(self.mailbox))

    async def ask(self, work: Callable[[Mailbox], Coroutine[Any, Any, T]]) -> T:
        """Do the same for a task of the calling loop."""
        return await asyncio.wrap_future(self.on_runtime(work))

    def watch_stops(self) -> Future[StopSignal]:
        """Return a signal that is set whenever a client asks to stop, until its `cleanup`."""

        def unwatch() -> None:
            with suppress(StreamClosedError):  # the worker stops, and hears nothing more
                self.on_runtime(lambda mailbox: mailbox.ignore_stops(signal))

        async def watch(mailbox: Mailbox) -> StopSignal:
            await mailbox.watch_stops(signal)
            return signal

        signal = StopSignal(unwatch=unwatch)

        return self.on_runtime(watch)

    async def hand_over(self, reason: str) -> bool:
        """Have what still waits, or comes in this moment, answered; say whether a run goes on."""

        async def leave(mailbox: Mailbox) -> bool:
            cursor = await mailbox.cursor()
            return await self.session.leave(reason, cursor, waits=mailbox.waits())

        return await self.ask(leave)

    async def is_replaced(self) -> bool:
        """Say whether another run serves the chat by now."""
        return await self.ask(lambda _: self.session.is_replaced())

    def leave(self) -> Future[None]:
        """Take nothing more, in either direction; what is accepted is still sent."""
        self.response.end()

        return self.on_runtime(Mailbox.close)


served_chat: ContextVar[BoundChat] = ContextVar("td_worker_chat")


@contextmanager
def serving(bound: BoundChat) -> Iterator[BoundChat]:
    """Make `bound` the chat of the block."""
    token = served_chat.set(bound)
    try:
        yield bound
    finally:
        served_chat.reset(token)


def bound_chat(what: str) -> BoundChat:
    """
    Return the chat that the calling code serves.

    Args:
        what: The call, for the message of the error.

    Raises:
        NotInChatError: It serves none.
    """
    bound = served_chat.get(None)
    if bound is None:
        raise NotInChatError(what)

    return bound
