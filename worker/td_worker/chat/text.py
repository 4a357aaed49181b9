"""Plain text as UI-message chunks, named and ordered as the AI SDK has them."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, AsyncIterable, Generator, Iterable
from typing import Any

Chunk = dict[str, Any]


async def text_chunks(
    pieces: AsyncIterable[str | None] | Iterable[str | None], *, message_id: str | None = None
) -> AsyncGenerator[Chunk, None]:
    """
    Yield the UI-message chunks of an answer that is plain text.

    That is what an AI SDK client, such as `useChat`, shows: `start`, `text-start`, a `text-delta`
    for each piece, `text-end` and `finish`. Pieces that are None or empty, as some providers send
    them, are left out.

    ```python
    @chat.agent
    async def answer(turn):
        async for chunk in chat.text(["Hel", "lo"]):
            yield chunk
    ```

    Args:
        pieces: An async or plain iterable of text.
        message_id: The id of the message; the run makes one when it is left out.
    """
    frame = _Frame(message_id)
    for chunk in frame.opening():
        yield chunk
    if isinstance(pieces, AsyncIterable):
        async for piece in pieces:
            if piece:
                yield frame.delta(piece)
    else:
        for piece in pieces:
            if piece:
                yield frame.delta(piece)
    for chunk in frame.closing():
        yield chunk


def text_chunks_blocking(
    pieces: Iterable[str | None], *, message_id: str | None = None
) -> Generator[Chunk, None, None]:
    """
    Yield the UI-message chunks of an answer that is plain text; see `td_worker.chat.text`.

    ```python
    @chat.agent
    def answer(turn):
        yield from chat.text(["Hel", "lo"])
    ```
    """
    frame = _Frame(message_id)
    yield from frame.opening()
    for piece in pieces:
        if piece:
            yield frame.delta(piece)
    yield from frame.closing()


class _Frame:
    def __init__(self, message_id: str | None) -> None:
        self._message_id = message_id
        self._part_id = f"txt_{secrets.token_hex(4)}"

    def opening(self) -> list[Chunk]:
        named = {"messageId": self._message_id} if self._message_id else {}

        return [{"type": "start"} | named, {"type": "text-start", "id": self._part_id}]

    def delta(self, piece: str) -> Chunk:
        return {"type": "text-delta", "id": self._part_id, "delta": piece}

    def closing(self) -> list[Chunk]:
        return [{"type": "text-end", "id": self._part_id}, {"type": "finish"}]
