"""The control socket for programs with an event loop: several requests at a time."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from typing import Final, TypeVar

import msgspec

from td_runtime.control import ControlRefusedError, not_running
from td_runtime.control_messages import Hello, Refused
from td_runtime.data_dir import DataDir
from td_worker.messages import MAX_CONTROL_FRAME, MAX_FRAME, decode_frames, encode_frame

__all__ = ["AsyncControl"]

_READ_BYTES: Final = 256 * 1024
_MOST_IDLE: Final = 16
"""Connections that are kept for the next requests."""

AnswerT = TypeVar("AnswerT", bound=msgspec.Struct)


class AsyncControl:
    """Asks the supervisor of a data folder. Each request has a connection to itself.

    For one event loop at a time; connections of another loop, or of a process that this one was
    forked from, are left alone.

    Args:
        data_dir: The data folder.
        name: Who is calling, in a word or two, for the record.
    """

    def __init__(self, data_dir: DataDir, *, name: str) -> None:
        self._data_dir = data_dir
        self._name = name
        self._idle: list[_Line] = []
        self._foreign: list[_Line] = []
        """Kept only so that nothing closes them: their loop is not ours to touch."""
        self._owner: tuple[int, asyncio.AbstractEventLoop | None] = (0, None)

    async def ask(
        self, request: msgspec.Struct, kind: type[AnswerT], *, timeout: float | None = None
    ) -> AnswerT:
        """Send one request and return its answer.

        Args:
            request: What is asked.
            kind: What is answered.
            timeout: Seconds until it is given up; None: never.

        Raises:
            NotRunningError: No supervisor answers. It may have carried out the request and died:
                give an idempotency key to be able to ask again.
            ControlRefusedError: The supervisor says no, and why; nothing has changed.
            TimeoutError: It takes too long; the request may still be carried out.
        """
        frame = encode_frame(request)
        if len(frame) > MAX_CONTROL_FRAME:
            raise ControlRefusedError(
                f"a request of {len(frame):,} bytes; the control socket takes "
                f"{MAX_CONTROL_FRAME:,}",
                advice="Ask for less at once.",
                code="too_large",
            )
        try:
            async with asyncio.timeout(timeout), self._line() as line:
                answer = await line.ask(frame, kind)
        except TimeoutError:
            raise
        except (OSError, EOFError) as error:
            raise not_running(self._data_dir.path, error) from error
        if isinstance(answer, Refused):
            raise ControlRefusedError(answer.message, advice=answer.advice, code=answer.code)

        return answer

    def close(self) -> None:
        """Hang up; the next request calls again."""
        lines, self._idle = self._idle, []
        if self._owner[0] == os.getpid():
            for line in lines:
                line.close()

    @contextlib.asynccontextmanager
    async def _line(self) -> AsyncIterator[_Line]:
        """Lend a connection; one that a request did not get its answer on is not used again."""
        self._forget_foreign()
        line = self._take_idle() or await self._connect()
        try:
            yield line
        except BaseException:
            line.close()
            raise
        if len(self._idle) < _MOST_IDLE:
            self._idle.append(line)
        else:
            line.close()

    def _forget_foreign(self) -> None:
        """Leave alone what belongs to another process or loop: it is in use there, or was."""
        owner = (os.getpid(), asyncio.get_running_loop())
        if owner != self._owner:
            self._foreign += self._idle
            self._idle = []
            self._owner = owner

    def _take_idle(self) -> _Line | None:
        while self._idle:
            line = self._idle.pop()
            if not line.is_gone:
                return line
            line.close()

        return None

    async def _connect(self) -> _Line:
        with self._data_dir.control_address() as address:
            reader, writer = await asyncio.open_unix_connection(address)
        line = _Line(reader, writer)
        try:
            await line.ask(encode_frame(Hello(name=self._name)), Hello)
        except BaseException:
            line.close()
            raise

        return line


class _Line:
    """One connection to the control socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._incoming = bytearray()

    @property
    def is_gone(self) -> bool:
        """Whether the supervisor has hung up."""
        return self._reader.at_eof() or self._writer.is_closing()

    async def ask(self, frame: bytes, kind: type[AnswerT]) -> AnswerT | Refused:
        self._writer.write(frame)
        await self._writer.drain()

        return msgspec.msgpack.decode(await self._receive(), type=Refused | kind)

    async def _receive(self) -> bytes:
        while not (bodies := decode_frames(self._incoming, limit=MAX_FRAME)):
            data = await self._reader.read(_READ_BYTES)
            if not data:
                raise EOFError("the supervisor hung up")
            self._incoming += data

        return bodies[0]

    def close(self) -> None:
        self._writer.close()
