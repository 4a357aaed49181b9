"""The loop of a chat agent: one turn per message, in order, until there is a reason to end."""

from __future__ import annotations

import asyncio
import inspect
import secrets
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import structlog

from td_worker.chat.bound import BoundChat
from td_worker.chat.history import (
    put_message,
    submit_message,
    through,
    without_trailing_answer,
)
from td_worker.chat.mailbox import Checkpoint, LastTurn, Taken
from td_worker.chat.output import TurnOutput
from td_worker.chat.payload import ChatPayload, UIMessage
from td_worker.chat.session import RUN_HEADER
from td_worker.chat.source import call_in_thread, run_handler
from td_worker.chat.turn import Turn
from td_worker.errors import AbortTaskRunError, ChatInputError, StreamError
from td_worker.hooks import Wait, waiting
from td_worker.input_calls import suspended as without_place

__all__ = ["AgentOptions", "Conversation", "Hook"]

log = structlog.get_logger()

Hook = Callable[[Turn], Any]
"""`async def` or plain `def`, which is called in a thread."""

STOP_GRACE: Final = 2.0
"""Seconds that an async handler may take to close its source after a stop, or when its run is cut.

Less than a drain leaves its runs, and their streams of it: a run whose handler takes all of it
would else be killed in place of going back to the queue."""

GRACE: Final = 0.02
"""Seconds that a run keeps its place for the next message: what is there needs no freeing."""

_TURN_COMPLETE: Final = "turn-complete"
_RETHROWN: Final = (AbortTaskRunError, MemoryError)
"""What ends the run and not only the turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentOptions:
    """How an agent behaves; see `chat.agent`. Times are seconds."""

    max_turns: int = 100
    turn_timeout: float = 3600.0
    idle_timeout: float = 30.0
    chat_access_token_ttl: float = 3600.0
    on_chat_start: Hook | None = None
    on_turn_start: Hook | None = None
    on_turn_complete: Hook | None = None
    on_action: Hook | None = None
    error_text: Callable[[Exception], str] | None = None


class Conversation:
    """
    One execution of an agent.

    Args:
        handler: The agent's own function.
        options: How it behaves.
        bound: The chat.
    """

    def __init__(self, handler: Hook, options: AgentOptions, bound: BoundChat) -> None:
        self._handler = handler
        self._options = options
        self._bound = bound
        self._history: list[UIMessage] = []
        self._turns = 0
        self._idle = options.idle_timeout
        self._last: LastTurn | None = None
        self._trim_to: int | None = None
        self._continued = ChatPayload()

    async def run(self, payload: ChatPayload) -> dict[str, Any]:
        """
        Hold the conversation that `payload` begins or goes on with.

        Returns:
            How many turns there were, and why it ended.
        """
        self._continued = payload
        # A run that its session has not started was never the session's, and has no successor.
        if self._is_retry and payload.session_id and await self._bound.is_replaced():
            return await self._ended("replaced")
        self._last = await self._bound.ask(lambda mailbox: mailbox.open())
        self._trim_to = None if self._last is None else self._last.seq
        self._heed(payload)
        if payload.trigger == "close":
            return await self._ended("close")
        if payload.asks_for_turn and not payload.continuation and not self._was_answered():
            await self._bound.ask(lambda mailbox: mailbox.put(payload))

        return await self._take_turns()

    @property
    def _is_retry(self) -> bool:
        return self._bound.execution.attempt.number > 1

    def _was_answered(self) -> bool:
        """Say whether an earlier attempt has answered what the payload holds, which comes first."""
        last = self._last

        return last is not None and last.run_id == self._bound.execution.run.id

    async def _take_turns(self) -> dict[str, Any]:
        while (taken := await self._next()) is not None:
            self._heed(taken.payload)
            if taken.payload.trigger == "close":
                await self._complete(await self._end_turn())
                if not self._bound.mailbox.waits():
                    return await self._ended("close")
                continue
            await self._take_turn(taken)
            if self._bound.end_requested:
                return await self._ended("end_run")
            if self._turns >= self._options.max_turns:
                return await self._ended("max_turns")

        return await self._ended("turn_timeout")

    async def _next(self) -> Taken | None:
        """
        Return the next message; None when the time is over.

        A run that waits needs no place, warm or not: it has all it needs in memory, and whoever
        is next would wait for the idle time of those before it. A drain would, too.
        """
        bound = self._bound
        taken = await bound.ask(lambda mailbox: mailbox.take(GRACE))
        if taken is not None:
            return taken
        with without_place(bound.execution):
            taken = await bound.ask(lambda mailbox: mailbox.take(self._idle))
            if taken is not None:
                return taken
            log.debug("chat.suspended", chat_id=bound.chat_id)
            async with waiting(Wait(type="input", ids=(bound.chat_id,))):
                return await bound.ask(lambda mailbox: mailbox.take(self._options.turn_timeout))

    def _heed(self, payload: ChatPayload) -> None:
        if payload.idle_timeout_in_seconds is not None:
            self._idle = max(0.0, payload.idle_timeout_in_seconds)

    async def _ended(self, reason: str) -> dict[str, Any]:
        """End the run, once whatever has come meanwhile is in other hands."""
        bound = self._bound
        goes_on = reason != "replaced" and await asyncio.shield(bound.hand_over(reason))
        log.info(
            "chat.ended",
            chat_id=bound.chat_id,
            turns=self._turns,
            reason=reason,
            handed_over=goes_on,
        )

        return {"turns": self._turns, "ended": reason}

    # --- one turn ------------------------------------------------------------------------------

    async def _take_turn(self, taken: Taken) -> None:
        turn = self._begin(taken)
        bound = self._bound
        output: TurnOutput | None = None
        bound.turn = turn
        try:
            self._note_message(turn)
            output = bound.output = self._output_of(turn)
            await self._answer(turn, output, taken.problem)
        except _RETHROWN:
            raise
        except Exception as error:  # noqa: BLE001  the turn fails, the agent lives on
            turn.error = error
        finally:
            if output is not None:
                output.close()
            bound.turn = bound.output = None
        await self._finish(turn, output)

    def _begin(self, taken: Taken) -> Turn:
        payload = taken.payload
        is_action = payload.trigger == "action"
        if not is_action:
            self._turns += 1
        earlier = self._continued

        return Turn(
            chat_id=self._bound.chat_id,
            number=self._turns,
            trigger=payload.trigger or "submit-message",
            message=None if is_action else payload.message,
            messages=list(self._history),
            metadata=payload.metadata if payload.metadata is not None else earlier.metadata,
            action=payload.action,
            message_id=payload.message_id,
            continuation=earlier.continuation,
            previous_run_id=earlier.previous_run_id,
            stop=taken.stop,
            response_id=f"msg_{secrets.token_urlsafe(12)}",
        )

    def _note_message(self, turn: Turn) -> None:
        """Put what the client has sent into the history."""
        if turn.trigger == "regenerate-message":
            self._history = without_trailing_answer(through(self._history, turn.message_id))
        elif turn.message is not None:
            self._history = submit_message(self._history, turn.message)
        turn.messages = list(self._history)

    def _output_of(self, turn: Turn) -> TurnOutput:
        base = _unfinished(turn)
        if base is not None:
            turn.response_id = base.get("id") or turn.response_id

        return TurnOutput(self._bound.response.write, turn.response_id, base=base)

    async def _answer(self, turn: Turn, output: TurnOutput, problem: str | None) -> None:
        if problem is not None:
            raise ChatInputError(self._bound.chat_id, problem)
        options = self._options
        if turn.trigger == "action":
            if options.on_action is not None:
                await self._drive(options.on_action, turn, output)
            return
        if self._is_start(turn):
            await _call(options.on_chat_start, turn)
        await _call(options.on_turn_start, turn)
        await self._drive(self._handler, turn, output)

    def _is_start(self, turn: Turn) -> bool:
        """Say whether this turn is the first of the chat, and not only of this run."""
        return (
            turn.number == 1 and self._last is None and not turn.continuation and not self._is_retry
        )

    async def _drive(self, handler: Hook, turn: Turn, output: TurnOutput) -> None:
        """Take all that `handler` yields, until the client stops it."""
        if turn.stopped:
            return
        loop = asyncio.get_running_loop()
        stopped = asyncio.Event()
        turn.stop.on_stop(lambda: loop.call_soon_threadsafe(stopped.set))
        stopping = loop.create_task(stopped.wait())
        work = loop.create_task(run_handler(handler, turn, output), name="chat turn")
        try:
            await asyncio.wait({work, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                await _cut(work, output)
        except asyncio.CancelledError:
            await _cut(work, output)
            raise
        finally:
            stopping.cancel()
        _raise_failure(work, turn)

    async def _finish(self, turn: Turn, output: TurnOutput | None) -> None:
        """Tell the client how the turn ended, and keep what was said."""
        bound = self._bound
        turn.error = turn.error or bound.response.take_failure()
        if output is not None:
            self._note_answer(turn, output)
        turn.messages = list(self._history)
        checkpoint = await self._end_turn()
        # What was refused while the client's next token was fetched is this turn's, too.
        turn.error = turn.error or bound.response.take_failure()
        if turn.error is not None:
            self._write_error(turn, turn.error)
        turn.last_event_id = str(await self._complete(checkpoint, turn))
        log.info(
            "chat.turn_completed",
            chat_id=bound.chat_id,
            turn=turn.number,
            trigger=turn.trigger,
            stopped=turn.stopped,
            failed=turn.error is not None,
        )
        if turn.trigger != "action":
            await self._call_last(turn)

    def _note_answer(self, turn: Turn, output: TurnOutput) -> None:
        """Put what was said into the history; where that fails, the turn has."""
        is_whole = turn.error is None and not turn.stopped
        try:
            turn.response = output.message(complete=is_whole)
            if turn.response is not None:
                self._history = put_message(self._history, turn.response)
        except _RETHROWN:
            raise
        except Exception as error:  # noqa: BLE001  the turn fails, the agent lives on
            turn.error = turn.error or error

    async def _end_turn(self) -> Checkpoint:
        ttl = self._options.chat_access_token_ttl

        return await self._bound.ask(lambda mailbox: mailbox.end_turn(ttl))

    async def _call_last(self, turn: Turn) -> None:
        """Call `on_turn_complete`; what it raises takes nothing back of a turn that is over."""
        try:
            await _call(self._options.on_turn_complete, turn)
        except _RETHROWN:
            raise
        except Exception:
            log.exception("chat.hook_failed", chat_id=turn.chat_id, hook="on_turn_complete")

    def _write_error(self, turn: Turn, error: Exception) -> None:
        log.error(
            "chat.turn_failed",
            chat_id=turn.chat_id,
            turn=turn.number,
            exc_info=(type(error), error, error.__traceback__),
        )
        text = self._error_text(error)
        self._bound.response.write({"type": "error", "errorText": text})

    def _error_text(self, error: Exception) -> str:
        render = self._options.error_text or str
        try:
            return render(error) or "An unexpected error occurred"
        except Exception:  # noqa: BLE001  an error that cannot be shown must not end the run
            return "An unexpected error occurred"

    async def _complete(self, checkpoint: Checkpoint, turn: Turn | None = None) -> int:
        """Write the end of a turn behind everything else, and drop what the turn before left."""
        response = self._bound.response
        headers = self._headers(checkpoint)
        if (overflow := response.overflow()) is not None:
            await asyncio.shield(asyncio.wrap_future(overflow))
        try:
            seq = await asyncio.shield(
                asyncio.wrap_future(response.control(_TURN_COMPLETE, headers))
            )
        except StreamError as error:
            # Records of this turn were given up: its client must not take it for complete.
            if turn is not None and turn.error is None:
                turn.error = error
                self._write_error(turn, error)
            response.take_failure()
            seq = await asyncio.shield(
                asyncio.wrap_future(response.control(_TURN_COMPLETE, headers))
            )
        if self._trim_to is not None:
            response.trim(self._trim_to).add_done_callback(
                partial(_log_failed_trim, self._bound.chat_id)
            )
        self._trim_to = seq

        return seq

    def _headers(self, checkpoint: Checkpoint) -> list[tuple[str, str]]:
        facts = {
            "public-access-token": checkpoint.access_token,
            "session-in-event-id": checkpoint.cursor,
            "session-in-consumed-id": checkpoint.consumed,
            RUN_HEADER: self._bound.execution.run.id,
        }

        return [(name, str(fact)) for name, fact in facts.items() if fact is not None]


@asynccontextmanager
async def suspended(bound: BoundChat) -> AsyncIterator[None]:
    """Let the block be a wait of the run: its place is free for another."""
    async with waiting(Wait(type="input", ids=(bound.chat_id,))):
        with without_place(bound.execution):
            yield


async def _cut(work: asyncio.Task[None], output: TurnOutput) -> None:
    """End a handler under way; one that ignores its end goes on, but is heard no more."""
    output.close()
    work.cancel()
    work.add_done_callback(_forget_failure)
    await asyncio.wait({work}, timeout=STOP_GRACE)


def _forget_failure(work: asyncio.Task[None]) -> None:
    """Look at what a cut handler raised, which concerns nobody."""
    if not work.cancelled():
        work.exception()


def _unfinished(turn: Turn) -> UIMessage | None:
    """Return the assistant's message that this turn goes on with, after a tool call's result."""
    is_result = turn.message is not None and turn.message.get("role") == "assistant"

    return turn.messages[-1] if is_result and turn.messages else None


def _raise_failure(work: asyncio.Task[None], turn: Turn) -> None:
    if not work.done():
        log.warning("chat.handler_ignored_stop", chat_id=turn.chat_id, turn=turn.number)
        return
    if turn.stopped:
        return  # however a source that is closed in its middle ends: its client wanted that end
    if work.cancelled():
        raise RuntimeError("the handler was cancelled, and not by its client")
    work.result()


async def _call(hook: Hook | None, turn: Turn) -> None:
    if hook is None:
        return
    if inspect.iscoroutinefunction(hook):
        await hook(turn)
        return
    result = await call_in_thread(lambda: hook(turn))
    if inspect.isawaitable(result):
        await result


def _log_failed_trim(chat_id: str, trimmed: Future[int]) -> None:
    if not trimmed.cancelled() and (error := trimmed.exception()) is not None:
        log.warning("chat.trim_failed", chat_id=chat_id, reason=str(error))
