"""
Chat agents: tasks that hold a conversation with the clients of a session.

```python
from td_worker import chat

@chat.agent(idle_timeout=60)
async def answer(turn: chat.Turn):
    async for chunk in chat.text(["You said: ", turn.text]):
        yield chunk
```

A session's clients see its `out` stream, never the streams of a run: inside an agent write with
`yield`, `chat.response.write` or `chat.stream`. Plain `def` code takes the same names from
`td_worker.sync`.
"""

from __future__ import annotations

import asyncio

from td_worker.chat.agent import Agent, agent, bind
from td_worker.chat.bound import bound_chat
from td_worker.chat.calls import ChatMessages, ChatResponse, ChatStream, Observing
from td_worker.chat.payload import ChatPayload, UIMessage
from td_worker.chat.response import WriteHandle
from td_worker.chat.stop import StopSignal
from td_worker.chat.text import text_chunks as text
from td_worker.chat.turn import Turn

__all__ = [
    "Agent",
    "ChatPayload",
    "Observing",
    "StopSignal",
    "Turn",
    "UIMessage",
    "WriteHandle",
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

response = ChatResponse()
"""Writes chunks beside those that the handler yields, in order with them."""
stream = ChatStream()
"""The chat's `out` with the calls of `streams`."""
messages = ChatMessages()
"""The clients' messages."""


def is_stopped() -> bool:
    """
    Say whether a client has asked to stop the turn under way; False outside of a turn.

    ```python
    @chat.agent
    def answer(turn):
        for token in ["a", "b"]:
            if chat.is_stopped():
                return
            yield token
    ```

    Raises:
        NotInChatError: The calling code serves no chat.
    """
    turn = bound_chat("chat.is_stopped").turn

    return turn is not None and turn.stopped


def end_run() -> None:
    """
    End the agent's run once the turn under way is complete; the next message starts another.

    ```python
    @chat.agent
    async def answer(turn):
        yield {"type": "text-delta", "id": "t", "delta": "bye"}
        chat.end_run()
    ```

    Raises:
        NotInChatError: The calling code serves no chat.
    """
    bound_chat("chat.end_run").end_requested = True


async def create_stop_signal() -> StopSignal:
    """
    Return a signal that is set whenever a client asks to stop, for a loop of your own.

    A turn of an agent has its own: `turn.stop`.

    ```python
    async with chat.bind("chat-17"):
        signal = await chat.create_stop_signal()
        signal.reset()  # before each answer
        signal.cleanup()  # at the end
    ```

    Raises:
        NotInChatError: The calling code serves no chat.
        ControlPlaneError: The chat cannot be read.
    """
    return await asyncio.wrap_future(bound_chat("chat.create_stop_signal").watch_stops())
