"""What `chat.stream` and `chat.messages` are, for async code."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future
from datetime import timedelta
from functools import partial
from typing import Any

import structlog

from td_worker.chat.bound import BoundChat, bound_chat, served_chat
from td_worker.chat.conversation import suspended
from td_worker.chat.inbox import Pending
from td_worker.chat.mailbox import Offer
from td_worker.chat.payload import ChatPayload
from td_worker.chat.response import WriteHandle
from td_worker.errors import InputTimeoutError, NotInChatError, WaitpointTimeoutError
from td_worker.inputs import InputResult
from td_worker.session_calls import Control
from td_worker.session_channels import SessionOut
from td_worker.streams.writer import Source, StreamHandle, Writer
from td_worker.tail import Record

log = structlog.get_logger()

__all__ = ["ChatMessages", "ChatResponse", "ChatStream", "Observing", "message_result"]


class ChatResponse:
    """`chat.response`: one chunk after the other, through the run's one writer."""

    def write(self, chunk: object) -> WriteHandle:
        """
        Write one chunk to the chat, behind all that the run has written so far.

        Returns at once, sent or not: nothing has to be awaited. Awaiting the handle waits only
        while the buffer is full, which is what a hot loop should do; `handle.wait()` waits until
        the chunk is durable. A chunk that is not awaited is sent in order all the same; when more
        than 20 MiB wait, it is refused.

        What goes wrong is logged and on the handle: awaiting raises it. A failure that nobody looks
        at fails the turn. A chunk whose type begins with `data-` becomes part of the answer's
        message, unless it is `transient`.

        ```python
        @chat.agent
        async def answer(turn):
            await chat.response.write({"type": "data-progress", "id": "p", "data": 1})
            yield {"type": "text-delta", "id": "t", "delta": "done"}
        ```

        Raises:
            NotInChatError: The calling code serves no chat.
        """
        # As `bound.write`, but this is the hot loop, and each call is a tenth of its time.
        bound = served_chat.get(None)
        if bound is None:
            raise NotInChatError("chat.response.write")
        if (output := bound.output) is not None:
            output.note(chunk)

        return bound.response.write(chunk)


class ChatStream:
    """`chat.stream`: the chat's `out` with the calls of `streams`, each with its own writer."""

    def pipe(self, source: Source, *, mirror: bool = False) -> StreamHandle:
        """
        Stream all that `source` yields, from now on and by itself; see `streams.pipe`.

        A turn does not wait for it: wait for the handle, or the client sees the rest no more.

        ```python
        @chat.agent
        async def answer(turn):
            await chat.stream.pipe(chat.text(["Hello"])).wait()
        ```

        Raises:
            NotInChatError: The calling code serves no chat.
        """
        return self._out("chat.stream.pipe").pipe(source, mirror=mirror)

    def writer(self) -> Writer:
        """
        Return a writer; use it with `async with`.

        ```python
        async with chat.stream.writer() as writer:
            await writer.write({"type": "data-progress", "data": 1})
        ```

        Raises:
            NotInChatError: The calling code serves no chat.
        """
        return self._out("chat.stream.writer").writer()

    async def append(self, value: object) -> int:
        """
        Write one record and wait until it is acked; returns its sequence number.

        ```python
        seq = await chat.stream.append({"type": "data-note", "data": "kept"})
        ```

        Raises:
            NotInChatError: The calling code serves no chat.
            StreamError: The record was not taken, or was given up.
        """
        return await self._out("chat.stream.append").append(value)

    def read(
        self,
        *,
        timeout: float | timedelta = 60,
        last_event_id: str | int | None = None,
        on_control: Callable[[Control], object] | None = None,
    ) -> AsyncGenerator[Any, None]:
        """
        Return what was written to the chat, each chunk once, in order, and follow it.

        ```python
        async for chunk in chat.stream.read(timeout=1):
            print(chunk)
        ```

        Args:
            timeout: Ends after so much silence: 1 to 600 seconds, or a timedelta.
            last_event_id: Begin behind this sequence number; None for the beginning.
            on_control: Called with each control record, which the iterator leaves out.

        Raises:
            NotInChatError: The calling code serves no chat.
            SessionReadError: The control plane refuses.
        """
        return self._out("chat.stream.read").read(
            timeout=timeout, last_event_id=last_event_id, on_control=on_control
        )

    def _out(self, what: str) -> SessionOut:
        return SessionOut(bound_chat(what).session.out)


class Observing:
    """
    A handler of `chat.messages.on`, which is called until `off`.

    ```python
    observing = chat.messages.on(print)
    observing.off()
    ```
    """

    def __init__(self, bound: BoundChat, offer: Offer) -> None:
        self._bound = bound
        self._offer = offer

    def off(self) -> None:
        """Call it no more."""
        self._bound.on_runtime(lambda mailbox: mailbox.ignore(self._offer))


class ChatMessages:
    """
    `chat.messages`: the clients' messages, apart from stops and everything else that comes in.

    In an agent each message gets a turn, in order, unless it is taken here first.
    """

    def on(self, handler: Callable[[ChatPayload], object]) -> Observing:
        """
        Have `handler`, a plain function, called with every message, those that wait included.

        One that it takes, by returning exactly `True`, gets no turn. A chat that cannot be read is
        logged as `chat.observing_failed`: the handler is then never called.

        ```python
        @chat.agent
        async def answer(turn):
            heard = chat.messages.on(lambda message: message.trigger == "action")
            yield {"type": "text-delta", "id": "t", "delta": "hm"}
            heard.off()
        ```
        """
        bound = bound_chat("chat.messages.on")
        loop = asyncio.get_running_loop()

        def offer(payload: ChatPayload) -> Future[bool]:
            answer: Future[bool] = Future()
            try:
                loop.call_soon_threadsafe(_tell, handler, payload, answer)
            except RuntimeError:  # the loop is closed
                answer.set_result(False)

            return answer

        observing = bound.on_runtime(lambda mailbox: mailbox.observe(offer))
        observing.add_done_callback(partial(_log_failed_observing, bound.chat_id))

        return Observing(bound, offer)

    async def once(self, *, timeout: float | None = None) -> InputResult:
        """
        Take the next message, which then gets no turn.

        ```python
        more = await chat.messages.once(timeout=5)
        if more.ok:
            print(more.output.message)
        ```

        Args:
            timeout: Seconds to wait for it; None for as long as it takes.

        Raises:
            SessionReadError: The chat cannot be read.
        """
        bound = bound_chat("chat.messages.once")
        found = await bound.ask(lambda mailbox: mailbox.once(timeout))

        return message_result(found, InputTimeoutError(bound.chat_id, timeout or 0))

    def peek(self) -> ChatPayload | None:
        """
        Return the next message that waits and leave it; None without one.

        ```python
        if (waiting := chat.messages.peek()) is not None:
            print(waiting.trigger)
        ```
        """
        return bound_chat("chat.messages.peek").mailbox.peek()

    async def wait(self, *, timeout: float | None = None) -> InputResult:
        """
        Take the next message; while there is none, the run frees its place in the worker.

        ```python
        answer = (await chat.messages.wait(timeout=3600)).unwrap()
        ```

        Args:
            timeout: Seconds to wait for it; None for as long as it takes.

        Raises:
            SessionReadError: The chat cannot be read.
        """
        return await self.wait_with_idle_timeout(0, timeout=timeout)

    async def wait_with_idle_timeout(
        self, idle_timeout: float, *, timeout: float | None = None
    ) -> InputResult:
        """
        Take the next message: stay in place for a while, and only then free it.

        ```python
        answer = await chat.messages.wait_with_idle_timeout(30, timeout=3600)
        ```

        Args:
            idle_timeout: Seconds to stay in place.
            timeout: Seconds to wait after that; None for as long as it takes.

        Raises:
            SessionReadError: The chat cannot be read.
        """
        bound = bound_chat("chat.messages.wait")
        found = await bound.ask(lambda mailbox: mailbox.once(idle_timeout))
        if found is None and timeout != 0:
            async with suspended(bound):
                found = await bound.ask(lambda mailbox: mailbox.once(timeout))

        return message_result(found, wait_error(bound, timeout))


def message_result(
    found: Pending | None, error: InputTimeoutError | WaitpointTimeoutError
) -> InputResult:
    """Return a message as `once` and `wait` do."""
    if found is None:
        return InputResult(error=error)

    return InputResult(record=Record(seq_num=found.seq or 0, data=found.payload))


def wait_error(bound: BoundChat, timeout: float | None) -> WaitpointTimeoutError:
    """Return why a wait ended without a message."""
    return WaitpointTimeoutError(f"no message came to chat {bound.chat_id!r} in {timeout} seconds")


def _log_failed_observing(chat_id: str, observing: Future[None]) -> None:
    if not observing.cancelled() and (error := observing.exception()) is not None:
        log.error("chat.observing_failed", chat_id=chat_id, reason=str(error))


def _tell(
    handler: Callable[[ChatPayload], object], payload: ChatPayload, answer: Future[bool]
) -> None:
    if not answer.set_running_or_notify_cancel():
        return  # the chat was left: the message goes to whoever serves it next
    taken = False
    try:
        taken = handler(payload) is True
    except Exception:
        log.exception("chat.hook_failed", chat_id=payload.chat_id, hook="chat.messages.on")
    finally:
        answer.set_result(taken)
