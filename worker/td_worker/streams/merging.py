"""The sources that are merged into one writer, whatever runs them: tasks or threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from threading import Lock
from typing import TYPE_CHECKING

import structlog

from td_worker.errors import StreamClosedError
from td_worker.streams.buffer import resolve

if TYPE_CHECKING:
    from td_worker.streams.lane import Lane

log = structlog.get_logger()


class Merges:
    """
    The merged sources of one lane, from their beginning to their end; from any thread.

    While there are any, the lane counts as fed: the end of the run waits for them.
    """

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._lock = Lock()
        self._stops: dict[int, Callable[[], object]] = {}
        self._waiters: list[Future[None]] = []
        self._begun = 0

    def begin(self, stop: Callable[[], object]) -> Callable[[Exception | None], None]:
        """
        Note a source that `stop` would stop; return what to call, once, at its end.

        It takes what the source raised, or None.

        Raises:
            StreamError: The lane takes nothing any more.
        """
        if self._lane.closed:
            raise self._lane.refusal()
        with self._lock:
            self._begun += 1
            number = self._begun
            self._stops[number] = stop
            self._lane.stop_source = self.stop

        return lambda error: self._end(number, error)

    def ended(self) -> Future[None]:
        """Return what is done as soon as no source is under way."""
        waiter: Future[None] = Future()
        with self._lock:
            if self._stops:
                self._waiters.append(waiter)
                return waiter
        waiter.set_result(None)

        return waiter

    def stop(self) -> None:
        """Ask all sources to stop, which a thread does by its next write."""
        with self._lock:
            stops = list(self._stops.values())
        for stop in stops:
            stop()

    def _end(self, number: int, error: Exception | None) -> None:
        lane = self._lane
        # What the lane refuses, its writer raises; a source's own error is nobody else's matter.
        is_refusal = error is lane.error or (lane.closed and isinstance(error, StreamClosedError))
        if error is not None and not is_refusal:
            log.error("stream.source_failed", slot=lane.slot, exc_info=error)
        elif lane.closed:
            self.stop()  # the others would find out only by their next chunk, however late
        with self._lock:
            del self._stops[number]
            if self._stops:
                return
            waiters, self._waiters = self._waiters, []
            lane.end_feeding()
        resolve(waiters)
