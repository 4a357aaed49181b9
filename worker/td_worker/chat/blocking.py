"""
Chat for plain `def` code: `from td_worker.sync import chat`.

The same names and meanings as `td_worker.chat`, without `await`; every call blocks the calling
thread alone.

```python
from td_worker.sync import chat

@chat.agent
def answer(turn: chat.Turn):
    yield from chat.text(["You said: ", turn.text])
```
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from td_worker import context
from td_worker.blocking_sessions import SessionOut
from td_worker.chat import ChatPayload, StopSignal, Turn, UIMessage, end_run, is_stopped
from td_worker.chat.agent import Agent, agent, enter
from td_worker.chat.bound import BoundChat, bound_chat, serving
from td_worker.chat.calls import message_result, wait_error
from td_worker.chat.response import WriteHandle
from td_worker.chat.session import MainChannel
from td_worker.chat.text import text_chunks_blocking as text
from td_worker.context import executing, refuse_on_event_loop
from td_worker.errors import InputTimeoutError
from td_worker.hooks import Wait, waiting_blocked
from td_worker.input_calls import suspended as without_place
from td_worker.inputs import InputResult
from td_worker.session_calls import Control
from td_worker.streams.blocking import StreamHandle, Writer

__all__ = [
    "Agent",
    "ChatPayload",
    "StopSignal",
    "Turn",
    "UIMessage",
    "agent",
    "bind",
    "create_stop_signal",
    "end_run",
    "is_stopped",
    "messages",
    "response",
    "stream",
    "text",
]


class Written:
    """A chunk that was accepted; made by `chat.response.write`."""

    __slots__ = ("_handle",)

    def __init__(self, handle: WriteHandle) -> None:
        self._handle = handle

    def wait(self) -> None:
        """
        Block until the chunk is acked, and with it all that was written before.

        Raises:
            StreamError: It was given up.
        """
        self._handle.acked().result()


class ChatResponse:
    """
    `chat.response`; see `td_worker.chat`.

    ```python
    written = chat.response.write({"type": "data-step", "data": 1})
    written.wait()
    ```
    """

    def write(self, chunk: object) -> Written:
        """
        Write one chunk to the chat, behind all that the run has written so far.

        Blocks while the buffer is full.

        Raises:
            NotInChatError: The calling code serves no chat.
            BlockingCallError: An event loop runs in this thread: use `td_worker.chat` there.
            StreamError: The chunk was refused.
        """
        refuse_on_event_loop("chat.response.write")
        handle = bound_chat("chat.response.write").write(chunk)
        handle.block()

        return Written(handle)


class ChatStream:
    """
    `chat.stream`; see `td_worker.chat`.

    ```python
    chat.stream.pipe([{"type": "data-step", "data": n} for n in range(3)]).wait()
    seq = chat.stream.append({"type": "data-done"})
    ```
    """

    def pipe(self, source: Iterable[Any]) -> StreamHandle:
        """Stream all that `source` yields, in a thread of its own; see `td_worker.chat`."""
        return self._out("chat.stream.pipe").pipe(source)

    def writer(self) -> Writer:
        """Return a writer; see `td_worker.chat`."""
        return self._out("chat.stream.writer").writer()

    def append(self, value: object) -> int:
        """Write one record and wait until it is acked; see `td_worker.chat`."""
        return self._out("chat.stream.append").append(value)

    def read(
        self,
        *,
        timeout: float | timedelta = 60,
        last_event_id: str | int | None = None,
        on_control: Callable[[Control], object] | None = None,
    ) -> Generator[Any, None, None]:
        """Return what was written to the chat, and follow it; see `td_worker.chat`."""
        return self._out("chat.stream.read").read(
            timeout=timeout, last_event_id=last_event_id, on_control=on_control
        )

    def _out(self, what: str) -> SessionOut:
        return SessionOut(bound_chat(what).session.out)


class ChatMessages:
    """
    `chat.messages`; see `td_worker.chat`.

    ```python
    more = chat.messages.once(timeout=5)
    if more.ok:
        print(more.output.message)
    ```
    """

    def once(self, *, timeout: float | None = None) -> InputResult:
        """Take the next message, which then gets no turn; see `td_worker.chat`."""
        refuse_on_event_loop("chat.messages.once")
        bound = bound_chat("chat.messages.once")
        found = bound.on_runtime(lambda mailbox: mailbox.once(timeout)).result()

        return message_result(found, InputTimeoutError(bound.chat_id, timeout or 0))

    def peek(self) -> ChatPayload | None:
        """Return the next message that waits and leave it; None without one."""
        return bound_chat("chat.messages.peek").mailbox.peek()

    def wait(self, *, timeout: float | None = None) -> InputResult:
        """Take the next message; the run frees its place meanwhile. See `td_worker.chat`."""
        return self.wait_with_idle_timeout(0, timeout=timeout)

    def wait_with_idle_timeout(
        self, idle_timeout: float, *, timeout: float | None = None
    ) -> InputResult:
        """Take the next message: stay in place for a while first; see `td_worker.chat`."""
        refuse_on_event_loop("chat.messages.wait")
        bound = bound_chat("chat.messages.wait")
        found = bound.on_runtime(lambda mailbox: mailbox.once(idle_timeout)).result()
        if found is None and timeout != 0:
            with _suspended(bound):
                found = bound.on_runtime(lambda mailbox: mailbox.once(timeout)).result()

        return message_result(found, wait_error(bound, timeout))


response = ChatResponse()
"""Writes chunks beside those that the handler yields, in order with them."""
stream = ChatStream()
"""The chat's `out` with the calls of `streams`."""
messages = ChatMessages()
"""The clients' messages."""


@contextmanager
def bind(chat_id: str) -> Iterator[BoundChat]:
    """
    Serve a chat inside any plain `def` task; see `td_worker.chat.bind`.

    ```python
    with chat.bind("chat-17"):
        chat.response.write({"type": "data-note", "data": "from any task"})
    ```

    Raises:
        NotInTaskError: No task is running.
        BlockingCallError: An event loop runs in this thread: use `td_worker.chat` there.
    """
    refuse_on_event_loop("chat.bind")
    execution = context.current()
    bound, served = enter(MainChannel(chat_id, execution), execution)
    with executing(served), serving(bound):
        try:
            yield bound
        finally:
            bound.leave().result()


def create_stop_signal() -> StopSignal:
    """
    Return a signal that is set whenever a client asks to stop; see `td_worker.chat`.

    ```python
    with chat.bind("chat-17"):
        signal = chat.create_stop_signal()
        signal.reset()  # before each answer
        signal.cleanup()  # at the end
    ```
    """
    refuse_on_event_loop("chat.create_stop_signal")

    return bound_chat("chat.create_stop_signal").watch_stops().result()


@contextmanager
def _suspended(bound: BoundChat) -> Iterator[None]:
    """Let the block be a wait of the run: its place is free for another."""
    wait = Wait(type="input", ids=(bound.chat_id,))
    with waiting_blocked(wait), without_place(bound.execution):
        yield
