"""The local copy of a pipe: bounded, so that a slow reader of it holds back the source."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from threading import Lock
from typing import Any, Final

from td_worker.streams.buffer import resolve

MIRROR_CHUNKS: Final = 256
"""Chunks that a mirror holds for a reader that lags."""


class Mirror:
    """
    What a pipe has written, for one reader in the same process.

    The pipe puts, the reader takes; either may be a task or a thread, and none of the methods
    blocks. A reader that leaves, or the end of the run, closes it: then the pipe goes on alone.
    """

    def __init__(self, bound: int = MIRROR_CHUNKS) -> None:
        self._bound = bound
        self._lock = Lock()
        self._chunks: deque[Any] = deque()
        self._room: Future[None] | None = None
        self._news: Future[None] | None = None
        self._is_ended = False
        self._is_closed = False
        self._error: Exception | None = None

    def put(self, chunk: Any) -> Future[None] | None:
        """Add a chunk; return what is done once there is room for another, None if there is."""
        with self._lock:
            if self._is_closed:
                return None
            self._chunks.append(chunk)
            news, self._news = self._news, None
            if len(self._chunks) >= self._bound and self._room is None:
                self._room = Future()
            room = self._room
        _tell(news)

        return room

    def take(self) -> list[Any]:
        """
        Return all chunks at hand; none before `news` is done, and none at the end.

        Raises:
            Exception: What ended the pipe, once all chunks before are taken.
        """
        with self._lock:
            chunks = list(self._chunks)
            self._chunks.clear()
            room, self._room = self._room, None
            error = self._error
        _tell(room)
        if not chunks and error is not None:
            raise error

        return chunks

    def news(self) -> Future[None] | None:
        """Return what is done as soon as `take` has something to say; None at the end."""
        with self._lock:
            if self._is_closed or (self._is_ended and not self._chunks and self._error is None):
                return None
            news: Future[None] = Future()
            if self._chunks or self._is_ended:
                news.set_result(None)
            else:
                self._news = news

        return news

    def end(self, error: Exception | None = None) -> None:
        """Say that no chunk follows, and why when it was no clean end."""
        with self._lock:
            if self._is_ended:
                return
            self._is_ended = True
            self._error = error
            news, self._news = self._news, None
        _tell(news)

    def close(self) -> None:
        """Let the pipe go on alone: nobody reads any more. Chunks not taken are dropped."""
        with self._lock:
            self._is_closed = True
            self._chunks.clear()
            news, self._news = self._news, None
            room, self._room = self._room, None
        _tell(news)
        _tell(room)


def _tell(waiter: Future[None] | None) -> None:
    if waiter is not None:
        resolve([waiter])
