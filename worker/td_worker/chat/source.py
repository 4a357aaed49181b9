"""
Calls a handler and takes its chunks, whatever kind of function it is.

Async generators and iterators are pulled on the user loop. Everything that may block, a plain
function, a plain generator or the plain iterator of a provider's client, runs in a thread of its
own, which lives as long as the turn.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections.abc import AsyncIterable, Callable, Iterable
from concurrent.futures import Future
from typing import Any, Protocol

__all__ = ["Sink", "SinkClosed", "call_in_thread", "run_handler"]

Handler = Callable[[Any], Any]


class SinkClosed(Exception):  # noqa: N818  a signal between two threads, no error of anybody
    """The turn is over: nothing more is taken."""


class Sink(Protocol):
    """Where the chunks of one turn go."""

    async def put(self, chunk: object) -> None:
        """Take a chunk; waits while the buffer is full."""
        ...

    def put_blocking(self, chunk: object) -> None:
        """Take a chunk; blocks while the buffer is full. Raises `SinkClosed` after the turn."""
        ...


async def run_handler(handler: Handler, argument: Any, sink: Sink) -> None:
    """
    Call `handler` with `argument` and put everything it yields into `sink`.

    Cancelling closes an async source at once. A thread cannot be interrupted: it is left alone, and
    ends by itself, its source closed, as soon as it has a chunk that nobody takes any more.

    Raises:
        TypeError: The handler returned something that is no source of chunks.
        Exception: What the handler raised.
    """
    if inspect.isasyncgenfunction(handler) or _is_async(handler):
        result = handler(argument)
        if inspect.isawaitable(result):
            result = await result
    else:
        result = await call_in_thread(lambda: _call_and_drain(handler, argument, sink))
    await _drain(result, sink)


async def _drain(source: Any, sink: Sink) -> None:
    if source is None:
        return
    if isinstance(source, AsyncIterable):
        await _drain_async(source, sink)
    elif isinstance(source, list | tuple):
        for chunk in source:
            await sink.put(chunk)
    else:
        iterable = check_source(source)
        await call_in_thread(lambda: _drain_blocking(iterable, sink))


def check_source(source: Any) -> Iterable[Any]:
    """
    Return `source` if it yields chunks one after the other.

    Raises:
        TypeError: It does not; text and objects would be taken apart.
    """
    if isinstance(source, str | bytes | dict) or not isinstance(source, Iterable):
        raise TypeError(
            "a chat handler yields its chunks, or returns an iterable of them; got "
            f"{type(source).__name__}: for a single chunk write `yield chunk`, for text "
            "`chat.text([...])`"
        )

    return source


async def _drain_async(source: AsyncIterable[Any], sink: Sink) -> None:
    try:
        async for chunk in source:
            await sink.put(chunk)
    finally:
        # A generator that is left in its middle holds connections until someone collects it.
        close = getattr(source, "aclose", None) or getattr(source, "close", None)
        if close is not None and inspect.isawaitable(closing := close()):
            await closing


def _drain_blocking(source: Iterable[Any], sink: Sink) -> None:
    try:
        for chunk in source:
            sink.put_blocking(chunk)
    finally:
        if callable(close := getattr(source, "close", None)):
            close()


def _call_and_drain(handler: Handler, argument: Any, sink: Sink) -> Any:
    """Call a plain function; take its chunks here, unless they come on the loop."""
    result = handler(argument)
    if result is None or isinstance(result, AsyncIterable | list | tuple):
        return result
    _drain_blocking(check_source(result), sink)

    return None


async def call_in_thread(work: Callable[[], Any]) -> Any:
    """Run `work` in a thread of its own, with this task's context, and return its result."""
    here = contextvars.copy_context()
    done: Future[Any] = Future()

    def run() -> None:
        try:
            result = here.run(work)
        except SinkClosed:
            _settle(done, None, None)
        except BaseException as error:  # noqa: BLE001  a thread has nobody to raise to
            # A future refuses this one, and whoever awaits it would wait for ever.
            refused = isinstance(error, StopIteration)
            _settle(done, None, RuntimeError("StopIteration was raised") if refused else error)
        else:
            _settle(done, result, None)

    threading.Thread(target=run, name="td-chat-turn", daemon=True).start()

    return await asyncio.wrap_future(done)


def _settle(done: Future[Any], result: Any, error: BaseException | None) -> None:
    """Resolve `done`, unless nobody waits for it any more."""
    if not done.set_running_or_notify_cancel():
        return
    if error is not None:
        done.set_exception(error)
    else:
        done.set_result(result)


def _is_async(function: Any) -> bool:
    call = getattr(type(function), "__call__", None)  # noqa: B004  not whether, but which one

    return inspect.iscoroutinefunction(function) or any(
        test(call) for test in (inspect.iscoroutinefunction, inspect.isasyncgenfunction)
    )
