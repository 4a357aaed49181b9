"""Whether somebody wants the answer under way to stop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future

__all__ = ["StopSignal"]


class StopSignal:
    """
    Set once a client has asked to stop; for any thread.

    `turn.stop` is the signal of a turn. A task that runs its own loop makes one with
    `chat.create_stop_signal()` and resets it before each answer.

    ```python
    @chat.agent
    def answer(turn):
        for token in ask_model(turn.messages):
            if turn.stop.is_set():
                return
            yield token
    ```
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
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
            if self._reached.done():
                return
            self.message = message
            self._reached.set_result(None)
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def reset(self) -> None:
        """Listen for the next stop."""
        with self._lock:
            if self._reached.done():
                self._reached = Future()
                self.message = None
