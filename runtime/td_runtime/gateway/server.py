"""Granian, embedded, on a listening socket of our own."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Any, Final

from granian.constants import Interfaces
from granian.http import HTTP2Settings
from granian.net import SocketHolder  # type: ignore[attr-defined]
from granian.server.embed import Server

from td_runtime.gateway.errors import PortUnavailableError

BACKLOG: Final = 1024
CONNECTIONS_MAX: Final = 8192  # each open read holds one
# A client of the stream store may have thousands of small frames on their way. The HTTP/2 library
# closes a connection when those not yet read, at 256 bytes less their own size, come to more than
# half its window; so the window is large, and that of a stream is not.
CONNECTION_WINDOW: Final = 64 * 1024 * 1024
STREAM_WINDOW: Final = 256 * 1024
PREDECESSOR_S: Final = 2.5  # how long a gateway takes to end, and a little more
_RETRY_S: Final = 0.05


class GatewayServer(Server):
    """Serves one ASGI application over HTTP/1.1 and h2c on one port.

    Args:
        application: Who answers.
        listener: The socket to accept on; the server owns it from now on.
    """

    def __init__(self, application: Any, listener: socket.socket) -> None:
        host, port = listener.getsockname()[:2]
        super().__init__(
            application,
            address=host,
            port=port,
            interface=Interfaces.ASGINL,
            backlog=BACKLOG,
            backpressure=CONNECTIONS_MAX,
            websockets=False,
            log_enabled=False,
            http2_settings=HTTP2Settings(
                initial_connection_window_size=CONNECTION_WINDOW,
                initial_stream_window_size=STREAM_WINDOW,
            ),
        )
        self._listener = listener

    def end(self) -> None:
        """Accept nothing more; ``serve`` returns when what is in flight is answered."""
        self.stop()  # type: ignore[no-untyped-call]

    def _init_shared_socket(self) -> None:
        # Granian binds with SO_REUSEPORT: a second process on the port would not be refused but
        # get every other connection, and could be anybody's.
        fd = self._listener.detach()
        self._shd = SocketHolder(fd, False, BACKLOG)  # type: ignore[assignment, call-arg]


async def listen(host: str, port: int) -> socket.socket:
    """Listen on a port, outwaiting a gateway that is just ending there.

    After its supervisor was killed a gateway finishes what is in flight; its successor needs the
    same port, and nothing tells when it is free.

    Raises:
        PortUnavailableError: Somebody else has the port, or the host is not one of ours.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PREDECESSOR_S
    while True:
        try:
            return _listen(host, port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or loop.time() > deadline:
                raise PortUnavailableError(host=host, port=port, reason=str(error)) from error
        await asyncio.sleep(_RETRY_S)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)

    return listener
