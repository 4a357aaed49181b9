"""Where the chunks of one turn go: to the chat's writer, and into the message they make up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import Lock
from typing import Any

from td_worker.chat.accumulator import MessageAccumulator
from td_worker.chat.payload import UIMessage
from td_worker.chat.response import WriteHandle
from td_worker.chat.source import SinkClosed
from td_worker.encoding import to_plain

__all__ = ["TurnOutput"]


class TurnOutput:
    """
    The chunks of one turn, until it is closed; for any thread.

    Args:
        write: Writes one chunk to the chat.
        response_id: The id of the answer's message.
        base: The assistant's message that the answer goes on with, after a tool call's result.
    """

    def __init__(
        self,
        write: Callable[[object], WriteHandle],
        response_id: str,
        *,
        base: UIMessage | None = None,
    ) -> None:
        self._write_chunk = write
        self._response_id = response_id
        self._accumulator = MessageAccumulator(response_id, base=base)
        self._closed = False
        # A plain generator that its turn did not wait for must not write into the next one.
        self._lock = Lock()

    async def put(self, chunk: object) -> None:
        """Take a chunk; waits while the buffer is full. None is left out."""
        handle = self._write(chunk)
        if handle is not None:
            await handle

    def put_blocking(self, chunk: object) -> None:
        """Take a chunk; blocks while the buffer is full. None is left out."""
        handle = self._write(chunk)
        if handle is not None:
            handle.block()

    def note(self, chunk: object) -> None:
        """Have a data part that was written beside the answer become part of it, as upstream."""
        if not isinstance(chunk, dict):
            return
        kind = chunk.get("type")
        if isinstance(kind, str) and kind[:5] == "data-":
            with self._lock:
                if not self._closed:
                    self._accumulator.add(chunk)

    def close(self) -> None:
        """Take nothing more."""
        with self._lock:
            self._closed = True

    def message(self, *, complete: bool) -> UIMessage | None:
        """Return the message that the chunks make up, None when they make up none."""
        with self._lock:
            return self._accumulator.message(complete=complete)

    def _write(self, chunk: object) -> WriteHandle | None:
        if chunk is None:
            return None
        with self._lock:
            if self._closed:
                raise SinkClosed
            if (plain := _ui_chunk(chunk)) is not None:
                if plain["type"] == "start" and not plain.get("messageId"):
                    # Both sides must know the answer by the same id.
                    chunk = plain = {**plain, "messageId": self._response_id}
                self._accumulator.add(plain)

            return self._write_chunk(chunk)


def _ui_chunk(chunk: object) -> Mapping[str, Any] | None:
    """Return `chunk` as plain data if it may be a UI-message chunk."""
    if isinstance(chunk, Mapping):
        return chunk if isinstance(chunk.get("type"), str) else None
    if not MessageAccumulator.knows(getattr(chunk, "type", None)):
        return None
    try:
        plain = to_plain(chunk)
    except TypeError:
        return None

    return plain if isinstance(plain, dict) and isinstance(plain.get("type"), str) else None
