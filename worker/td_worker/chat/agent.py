"""The decorator that makes a chat agent of a function, and what serving a chat takes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Final, overload

from td_worker import context
from td_worker.chat.bound import BoundChat, ChatSession, serving
from td_worker.chat.conversation import AgentOptions, Conversation, Hook
from td_worker.chat.payload import ChatPayload, parse_payload
from td_worker.chat.session import MainChannel
from td_worker.context import Execution, executing
from td_worker.encoding import encode_json
from td_worker.errors import TaskPayloadError

__all__ = ["Agent", "Handler", "agent", "bind", "enter"]

Handler = Callable[..., Any]
"""Takes a `Turn`; yields chunks, or returns what does."""

_HOUR: Final = 3600.0


class Agent:
    """
    A chat agent: what `@chat.agent` makes, and an entrypoint for the config file.

    ```python
    @chat.agent(max_turns=3)
    async def answer(turn: chat.Turn):
        yield {"type": "data-name", "data": answer.__name__}
    ```

    Attributes:
        options: How it behaves.
    """

    def __init__(self, handler: Handler, options: AgentOptions) -> None:
        self._handler = handler
        self.options = options
        # Not functools.wraps: the entrypoint is called with a payload, the handler with a turn.
        self.__name__ = getattr(handler, "__name__", type(handler).__name__)
        self.__qualname__ = getattr(handler, "__qualname__", self.__name__)
        self.__module__ = getattr(handler, "__module__", __name__)
        self.__doc__ = handler.__doc__

    def __repr__(self) -> str:
        return f"<chat agent {self.__module__}:{self.__qualname__}>"

    async def __call__(self, payload: Any) -> dict[str, Any]:
        """
        Serve the chat that `payload` names, until the conversation rests or ends.

        Returns:
            `{"turns": <how many>, "ended": <why>}`: `turn_timeout`, `max_turns`, `end_run`,
            `close`, or `replaced` for another attempt of a run that has handed its chat over.

        Raises:
            TaskPayloadError: The payload names no chat.
        """
        started = self._parse(payload)
        chat_id = started.chat_id or started.session_id or ""
        execution = context.current()
        async with _serving(MainChannel(chat_id, execution), execution) as bound:
            return await Conversation(self._handler, self.options, bound).run(started)

    def _parse(self, payload: Any) -> ChatPayload:
        try:
            started = parse_payload({} if payload is None else payload)
        except ValueError as error:
            raise self._refusal(payload, str(error)) from error
        if not (started.chat_id or started.session_id):
            raise self._refusal(
                payload, "it has no `chatId`: an agent's runs are started by its session"
            )

        return started

    def _refusal(self, payload: Any, reason: str) -> TaskPayloadError:
        return TaskPayloadError(context.current().task.id, reason, encode_json(payload))


@overload
def agent(handler: Handler, /) -> Agent: ...
@overload
def agent(
    *,
    max_turns: int = 100,
    turn_timeout: float | timedelta = _HOUR,
    idle_timeout: float | timedelta = 30.0,
    chat_access_token_ttl: float | timedelta = _HOUR,
    on_chat_start: Hook | None = None,
    on_turn_start: Hook | None = None,
    on_turn_complete: Hook | None = None,
    on_action: Hook | None = None,
    error_text: Callable[[Exception], str] | None = None,
) -> Callable[[Handler], Agent]: ...


def agent(
    handler: Handler | None = None,
    /,
    *,
    max_turns: int = 100,
    turn_timeout: float | timedelta = _HOUR,
    idle_timeout: float | timedelta = 30.0,
    chat_access_token_ttl: float | timedelta = _HOUR,
    on_chat_start: Hook | None = None,
    on_turn_start: Hook | None = None,
    on_turn_complete: Hook | None = None,
    on_action: Hook | None = None,
    error_text: Callable[[Exception], str] | None = None,
) -> Any:
    """
    Make a chat agent of a function: a task that holds one conversation, one turn per message.

    The function takes a `Turn` and yields the chunks of its answer, whatever JSON can say: plain
    data, dataclasses, msgspec structs, pydantic models, the events of a model provider's client as
    they come. It is an async generator, an `async def` that returns an iterable (async or plain),
    or a plain generator, which runs in a thread. None is left out.

    ```python
    from td_worker import chat

    @chat.agent
    async def answer(turn: chat.Turn):
        async for chunk in chat.text(["You said: ", turn.text]):
            yield chunk
    ```

    What the function raises ends its turn: the client gets an `error` chunk, and the agent goes on
    with the next message. A stop of the client closes the source in its middle. The agent's run
    ends when no message came for long enough, and the next message starts another.

    In the config, an agent is a task like any other; `retry = { max_attempts = 1 }` keeps the
    official SDK's rule that a run that failed is not started over.

    Args:
        handler: The function, when the decorator is used without parentheses.
        max_turns: Turns of one run; the next message starts another.
        turn_timeout: How long a run waits for the next message after that; seconds.
        idle_timeout: How long it waits warm first; seconds. It needs no place even then; afterwards
            its `on_wait` hooks are called, and its clock stands still.
        chat_access_token_ttl: How long the token that each turn hands its client is valid; seconds.
        on_chat_start: Called with the first turn of a chat, before it.
        on_turn_start: Called with every turn, before the handler; what it raises fails the turn.
        on_turn_complete: Called with every turn once its end is written.
        on_action: Called with an action of the client, which is no turn; may yield chunks as well.
        error_text: Makes the text of an `error` chunk; the error's own message when left out.
    """
    options = AgentOptions(
        max_turns=max_turns,
        turn_timeout=_seconds(turn_timeout),
        idle_timeout=_seconds(idle_timeout),
        chat_access_token_ttl=_seconds(chat_access_token_ttl),
        on_chat_start=on_chat_start,
        on_turn_start=on_turn_start,
        on_turn_complete=on_turn_complete,
        on_action=on_action,
        error_text=error_text,
    )
    if handler is not None:
        return Agent(handler, options)

    return lambda function: Agent(function, options)


@asynccontextmanager
async def bind(chat_id: str) -> AsyncIterator[BoundChat]:
    """
    Serve a chat inside any task, with a loop of your own.

    Inside the block `chat.response`, `chat.stream`, `chat.messages` and the stop signal are that
    chat's. What is accepted by its end is still sent, and a message that nobody has taken by then
    is there for the next block of the same attempt. Two blocks at the same time would take each
    other's messages: make one for all of them.

    ```python
    async def announce(payload):
        async with chat.bind(payload["chatId"]):
            await chat.response.write({"type": "data-news", "data": "hello"})
    ```

    Args:
        chat_id: The session, by either form of its id.

    Raises:
        NotInTaskError: No task is running.
    """
    execution = context.current()
    async with _serving(MainChannel(chat_id, execution), execution) as bound:
        yield bound


def enter(session: ChatSession, execution: Execution) -> tuple[BoundChat, Execution]:
    """Return the chat behind `session`, and the execution as its code is to see it."""
    served = execution.serving_chat()

    return BoundChat(session, served), served


@asynccontextmanager
async def _serving(session: ChatSession, execution: Execution) -> AsyncIterator[BoundChat]:
    bound, served = enter(session, execution)
    with executing(served), serving(bound):
        try:
            yield bound
        finally:
            await _left(bound)


async def _left(bound: BoundChat) -> None:
    """Leave `bound`, whatever happens: an attempt may be cancelled while it does."""
    leaving: Awaitable[None] = asyncio.wrap_future(bound.leave())
    await asyncio.shield(leaving)


def _seconds(time: float | timedelta) -> float:
    return time.total_seconds() if isinstance(time, timedelta) else float(time)
