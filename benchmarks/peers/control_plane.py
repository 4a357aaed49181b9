"""The control plane that every contender asks: one process on loopback that counts PUTs.

It answers each PUT a fixed time after it came, so that what a caller waits beyond that is the
cache's doing, and can be told to leave the first one unanswered, or to be down for some time.
"""

from __future__ import annotations

import asyncio
import fcntl
import http.client
import os
import secrets
import select
import signal
import socket
import time
from dataclasses import dataclass
from typing import Self

Address = tuple[str, int]

_MANY_LINES = 1 << 20
_FOR_EVER = 3600.0

WARM_UP = "run_before"
"""PUTs for this are answered at once, whatever the behaviour, and not counted."""


class PutFailedError(Exception):
    """A PUT was answered with anything but a token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Put:
    """One PUT, as the control plane saw it come."""

    at: float
    """Monotonic seconds; one clock for all processes."""
    was_served: bool


class ControlPlane:
    """A forked process that answers `PUT` with a token.

    Args:
        delay: Seconds each answer takes.
        hangs_first: Whether the first PUT is never answered.
        down_for: Seconds from the first PUT on in which every answer is a 503.
    """

    def __init__(self, *, delay: float, hangs_first: bool = False, down_for: float = 0.0) -> None:
        self.delay = delay
        self.hangs_first = hangs_first
        self.down_for = down_for

    def __enter__(self) -> Self:
        listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.address: Address = listener.getsockname()[:2]
        self._reader, writer = os.pipe()
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, _MANY_LINES)
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._reader)
            _Server(self, listener, writer).serve()
        listener.close()
        os.close(writer)

        return self

    def __exit__(self, *_: object) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._reader)

    def wait_for_put(self, seconds: float) -> Put:
        """Return the next PUT, once it has come."""
        ready, _, _ = select.select([self._reader], [], [], seconds)
        if not ready:
            raise TimeoutError("nobody has asked the control plane")

        return _parse(_read_line(self._reader))

    def puts(self) -> list[Put]:
        """Return the PUTs that have come and were not returned before."""
        os.set_blocking(self._reader, False)
        lines = b""
        try:
            while chunk := os.read(self._reader, 65536):
                lines += chunk
        except BlockingIOError:
            pass
        finally:
            os.set_blocking(self._reader, True)

        return [_parse(line) for line in lines.splitlines()]


class _Server:
    def __init__(self, behaviour: ControlPlane, listener: socket.socket, puts: int) -> None:
        self._behaviour = behaviour
        self._listener = listener
        self._puts = puts
        self._first_at: float | None = None

    def serve(self) -> None:
        try:
            asyncio.run(self._serve())
        finally:
            os._exit(1)

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._answer, sock=self._listener, backlog=512)
        await server.serve_forever()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await reader.readuntil(b"\r\n\r\n")
            status, body = await self._decide(is_warm_up=WARM_UP.encode() in request)
            head = (
                f"HTTP/1.1 {status} x\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            writer.write(head.encode() + body)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # a client that was killed
        finally:
            writer.close()

    async def _decide(self, *, is_warm_up: bool) -> tuple[int, bytes]:
        if is_warm_up:
            return 200, _token()

        now = time.monotonic()
        is_first = self._first_at is None
        self._first_at = now if self._first_at is None else self._first_at
        is_served = now - self._first_at >= self._behaviour.down_for
        os.write(self._puts, f"{now} {int(is_served)}\n".encode())
        if is_first and self._behaviour.hangs_first:
            await asyncio.sleep(_FOR_EVER)
        await asyncio.sleep(self._behaviour.delay)
        if not is_served:
            return 503, b""

        return 200, _token()


def _token() -> bytes:
    return secrets.token_hex(300).encode()


def put(address: Address, name: str) -> str:
    """Send one PUT and return the token.

    Raises:
        PutFailedError: There was another answer, or none.
    """
    connection = http.client.HTTPConnection(*address, timeout=_FOR_EVER)
    try:
        connection.request("PUT", f"/{name}")
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise PutFailedError(str(error)) from error
    finally:
        connection.close()
    if answer.status != 200:
        raise PutFailedError(f"status {answer.status}")

    return body.decode()


async def put_async(address: Address, name: str) -> str:
    """Do what `put` does, on an event loop."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(f"PUT /{name} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n".encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    except OSError as error:
        raise PutFailedError(str(error)) from error
    finally:
        writer.close()
    if not head.startswith(b"HTTP/1.1 200 "):
        raise PutFailedError(head[:30].decode())

    return body.decode()


def _read_line(fd: int) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        line += os.read(fd, 1)

    return line


def _parse(line: bytes) -> Put:
    at, was_served = line.split()

    return Put(at=float(at), was_served=was_served == b"1")
