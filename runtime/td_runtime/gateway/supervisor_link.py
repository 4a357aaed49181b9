"""The gateway's line to the supervisor: how an HTTP request starts a run.

What is said over the control socket is imported with the first request: a gateway that only hands
out credentials starts without it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

if TYPE_CHECKING:
    from td_worker.messages import TriggerItem

ANSWER_S: Final = 30.0
_READ_BYTES: Final = 256 * 1024

AnswerT = TypeVar("AnswerT", bound=msgspec.Struct)


class SupervisorLink:
    """Asks the supervisor of a data folder, one connection a request.

    Args:
        data_dir: The data folder.
    """

    def __init__(self, data_dir: str) -> None:
        self._data_dir = data_dir

    async def trigger(self, items: list[TriggerItem]) -> list[str]:
        """Have runs accepted; returns their ids, in order, once they are durable.

        Raises:
            NotRunningError: No supervisor answers. It may have accepted the runs and died: give
                an idempotency key to be able to ask again.
            ControlRefusedError: The supervisor says no, and why; nothing was accepted.
        """
        from td_runtime.control import Accepted, TriggerRuns

        return (await self.ask(TriggerRuns(items=items), Accepted)).run_ids

    async def ask(self, request: msgspec.Struct, kind: type[AnswerT]) -> AnswerT:
        """Send one request and return its answer; raises as :meth:`trigger`."""
        from td_runtime.control import Hello, NotRunningError

        try:
            async with asyncio.timeout(ANSWER_S), _connect(self._data_dir) as line:
                await line.ask(Hello(name="HTTP API"), Hello)
                return await line.ask(request, kind)
        except (OSError, EOFError) as error:  # a TimeoutError is an OSError
            raise NotRunningError(
                "no supervisor answers",
                where=self._data_dir,
                advice="Start one with `td-runtime start`, with the same config file.",
            ) from error


class _Line:
    """One connection to the control socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._incoming = bytearray()

    async def ask(self, request: msgspec.Struct, kind: type[AnswerT]) -> AnswerT:
        from td_runtime.control import ControlRefusedError, Refused
        from td_worker.messages import MAX_CONTROL_FRAME, encode_frame

        frame = encode_frame(request)
        if len(frame) > MAX_CONTROL_FRAME:
            raise ControlRefusedError(
                f"a request of {len(frame):,} bytes; the control socket takes"
                f" {MAX_CONTROL_FRAME:,}",
                advice="Ask for less at once.",
            )
        self._writer.write(frame)
        await self._writer.drain()
        answer = msgspec.msgpack.decode(await self._receive(), type=Refused | kind)
        if isinstance(answer, Refused):
            raise ControlRefusedError(answer.message, advice=answer.advice)
        assert isinstance(answer, kind)  # noqa: S101  decoded as one of the two

        return answer

    async def _receive(self) -> bytes:
        from td_worker.messages import MAX_CONTROL_FRAME, decode_frames

        while not (bodies := decode_frames(self._incoming, limit=MAX_CONTROL_FRAME)):
            data = await self._reader.read(_READ_BYTES)
            if not data:
                raise EOFError("the supervisor hung up")
            self._incoming += data

        return bodies[0]


@contextlib.asynccontextmanager
async def _connect(data_dir: str) -> AsyncIterator[_Line]:
    from td_runtime.data_dir import DataDir

    with DataDir(Path(data_dir)).control_address() as address:
        reader, writer = await asyncio.open_unix_connection(address)
    try:
        yield _Line(reader, writer)
    finally:
        writer.close()
