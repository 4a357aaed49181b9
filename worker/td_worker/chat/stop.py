"""Whether somebody wants the answer under way to stop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future

import structlog

from td_worker.http import say

__all__ = ["StopSignal"]

log = structlog.get_logger()


class StopSignal:
    """
    Set once a client has asked to stop; for any thread.

    `turn.stop` is the signal of a turn. A task that runs its own loop makes one with
    `chat.create_stop_signal()`, resets it before each answer, and calls `cleanup` at the end.

    ```python
    @chat.agent
    def answer(turn):
        for token in ask_model(turn.messages):
            if turn.stop.is_set():
                return
            yield token
    ```

    Args:
        unwatch: Has nobody set it any more; None for the signal of a turn.
    """

    def __init__(self, *, unwatch: Callable[[], object] | None = None) -> None:
        self._lock = threading.Lock()
        self._unwatch = unwatch
        self._is_deaf = False
        self._reached: Future[None] = Future()
        self._callbacks: list[Callable[[], object]] = []
        self.message: str | None = None
        """What the client said with it, if anything."""

    def __bool__(self) -> bool:
        return self.is_set()

    def is_set(self) -> bool:
        """Say whether somebody has asked to stop."""
        return self._reached.done()

    def future(self) -> Future[None]:
        """Return what is done once somebody has asked to stop. Not to be cancelled."""
        return self._reached

    def on_stop(self, callback: Callable[[], object]) -> None:
        """Have `callback` called at the stop, in whichever thread hears of it; now if it came."""
        with self._lock:
            if not self._reached.done():
                self._callbacks.append(callback)
                return
        callback()

    def set(self, message: str | None = None) -> None:
        """Ask to stop; what comes after the first is ignored."""
        with self._lock:
            if self._reached.done() or self._is_deaf:
                return
            self.message = message
            self._reached.set_result(None)
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            try:
                callback()
            # This may be the thread that hears of everything that comes in.
            except Exception as error:
                log.error("input.handler_failed", source="stop", reason=say(error), exc_info=error)

    def reset(self) -> None:
        """Listen for the next stop."""
        with self._lock:
            if self._reached.done():
                self._reached = Future()
                self.message = None

    def cleanup(self) -> None:
        """
        Hear of no further stop: nothing sets it, calls its callbacks or ends its future any more.

        What it has heard stays. A second call does nothing, and so does one on `turn.stop`, which
        ends with its turn. A signal that is not cleaned up listens until its chat is left.

        ```python
        async with chat.bind("chat-17"):
            signal = await chat.create_stop_signal()
            try:
                signal.reset()  # before each answer
            finally:
                signal.cleanup()
        ```
        """
        with self._lock:
            unwatch, self._unwatch = self._unwatch, None
            if unwatch is None:
                return
            self._is_deaf = True
            self._callbacks.clear()
        unwatch()
