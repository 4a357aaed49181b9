"""How long an attempt may take; waits do not count."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["AttemptClock"]


class AttemptClock:
    """The time left of one attempt. Belongs to the user loop.

    Args:
        seconds: How long the attempt may take; None: as long as it likes.
        over: Called once, when the time is over.
    """

    def __init__(self, seconds: float | None, over: Callable[[], None]) -> None:
        self._left = seconds
        self._over = over
        self._waits = 0
        self._since = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def left(self) -> float | None:
        """Seconds that were left when it last started or stopped; None: no limit, or it is over."""
        return None if self._waits else self._left

    def start(self) -> None:
        """Let the time run."""
        if self._left is not None and not self._waits:
            loop = asyncio.get_running_loop()
            self._since = loop.time()
            self._timer = loop.call_later(self._left, self._over)

    def pause(self) -> None:
        """Stop the time; a run may wait for several things at once."""
        self._waits += 1
        self._halt()

    def resume(self) -> None:
        """End one wait; with the last one the time goes on."""
        self._waits -= 1
        self.start()

    def stop(self) -> None:
        """Stop the time for good."""
        self._halt()
        self._left = None

    def _halt(self) -> None:
        if self._timer is None or self._left is None:
            return
        self._timer.cancel()
        self._timer = None
        self._left = max(0.0, self._left - (asyncio.get_running_loop().time() - self._since))
