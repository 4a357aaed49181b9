"""The supervisor's end of the control socket; what is said over it is in `control_messages`."""

import asyncio
import os
import socket
import struct
from collections.abc import Callable
from typing import Any, Final

import msgspec
import structlog

from td_runtime.control_messages import PROTOCOL_VERSION, Hello, Refused, Request
from td_runtime.data_dir import DataDir
from td_runtime.errors import TdRuntimeError
from td_worker.channel import Channel
from td_worker.messages import MAX_CONTROL_FRAME

__all__ = ["ControlServer", "Handler"]

log = structlog.get_logger()

_decoder: Final = msgspec.msgpack.Decoder(Request)
_PEER_CREDENTIALS: Final = struct.Struct("3i")

Handler = Callable[[Request, str, Callable[[msgspec.Struct], None]], Callable[[], object] | None]
"""Takes a request, who asks in words, and a function that sends the answer, at once or later.

Returns what is to be called when the client hangs up, if its answer is then of no use.
"""

_NAME_LENGTH: Final = 100

_PAUSE: Final = 1.0
"""Seconds until callers are accepted again after there was no descriptor, or no memory, for one."""

_NO_HELLO: Final = Refused(
    message="the first message is a hello with the version of the control protocol",
    advice="Use td-runtime's own clients.",
)


class ControlServer:
    """The supervisor's end: accepts clients, hands their requests to *handler*.

    A client may have one request under way at a time; a client that leaves takes nothing with it.
    """

    def __init__(
        self, data_dir: DataDir, handler: Handler, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._handler = handler
        self._loop = loop
        self._clients: set[Channel[Any]] = set()
        self._path = data_dir.control_socket
        self._listener = _listen(data_dir)
        self._resume: asyncio.TimerHandle | None = None
        self._listen()

    def close(self) -> None:
        """Stop listening, hang up on clients, remove the socket."""
        if self._resume is not None:
            self._resume.cancel()
        self._loop.remove_reader(self._listener.fileno())
        self._listener.close()
        self._path.unlink(missing_ok=True)
        for client in list(self._clients):
            client.close()

    async def flushed(self) -> None:
        """Return when clients have been sent their answers."""
        for client in list(self._clients):
            await client.flushed()

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionError):  # who called hung up again
            return
        except OSError as error:
            self._pause(error)
            return
        pid, uid, _ = _peer(sock)
        if uid not in {0, os.geteuid()}:
            sock.close()
            return
        self._serve(sock, f"user {uid}, process {pid}")

    def _pause(self, error: OSError) -> None:
        """Let callers wait: one that cannot be accepted would wake the loop without end."""
        log.error("control.paused", error_message=str(error))
        self._loop.remove_reader(self._listener.fileno())
        self._resume = self._loop.call_later(_PAUSE, self._listen)

    def _listen(self) -> None:
        self._loop.add_reader(self._listener.fileno(), self._accept)

    def _serve(self, sock: socket.socket, where: str) -> None:
        asks = f"client ({where})"
        refusal: Refused | None = _NO_HELLO
        withdraw: Callable[[], object] | None = None

        def receive(request: Request) -> None:
            nonlocal asks, refusal, withdraw
            if isinstance(request, Hello):
                asks = f"{request.name[:_NAME_LENGTH]} ({where})"
                refusal = _find_refusal(request)
                client.send(refusal or Hello())
            elif refusal is not None:
                client.send(refusal)
            else:
                withdraw = self._handler(request, asks, client.send)

        def closed(_: Exception | None) -> None:
            self._clients.discard(client)
            if withdraw is not None:
                withdraw()

        client: Channel[Request] = Channel(
            sock,
            decoder=_decoder,
            on_message=receive,
            on_closed=closed,
            loop=self._loop,
            limit=MAX_CONTROL_FRAME,
        )
        self._clients.add(client)


def _find_refusal(hello: Hello) -> Refused | None:
    if hello.version == PROTOCOL_VERSION:
        return None

    return Refused(
        message=f"the client speaks version {hello.version} of the control protocol, "
        f"the supervisor {PROTOCOL_VERSION}",
        advice="Use the td-runtime that started the supervisor.",
    )


def _listen(data_dir: DataDir) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        # Who gets here owns the folder, so a socket that is there belongs to nobody.
        data_dir.control_socket.unlink(missing_ok=True)
        with data_dir.control_address() as address:
            listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise TdRuntimeError(
            f"the control socket cannot be made: {error.strerror}",
            where=str(data_dir.control_socket),
            advice="Look whether something else is in its place, or the disk is full.",
        ) from error
    finally:
        os.umask(before)
    listener.setblocking(False)

    return listener


def _peer(sock: socket.socket) -> tuple[int, int, int]:
    """Return process, user and group of the other end."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
    pid, uid, gid = _PEER_CREDENTIALS.unpack(raw)

    return pid, uid, gid
