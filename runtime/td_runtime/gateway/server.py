"""Granian, embedded, on a listening socket of our own."""

from __future__ import annotations

import socket
from typing import Any, Final

from granian.constants import Interfaces
from granian.net import SocketHolder  # type: ignore[attr-defined]
from granian.server.embed import Server

from td_runtime.gateway.errors import PortUnavailableError

BACKLOG: Final = 1024
CONNECTIONS_MAX: Final = 8192  # each open read holds one


class GatewayServer(Server):
    """Serves one ASGI application over HTTP/1.1 and h2c on one port."""

    def __init__(self, application: Any, *, host: str, port: int) -> None:
        super().__init__(
            application,
            address=host,
            port=port,
            interface=Interfaces.ASGINL,
            backlog=BACKLOG,
            backpressure=CONNECTIONS_MAX,
            websockets=False,
            log_enabled=False,
        )

    def end(self) -> None:
        """Accept nothing more; ``serve`` returns when what is in flight is answered."""
        self.stop()  # type: ignore[no-untyped-call]

    def _init_shared_socket(self) -> None:
        # Granian binds with SO_REUSEPORT: a second process on the port would not be refused but
        # get every other connection, and could be anybody's.
        listener = _listen(self.bind_addr, self.bind_port)
        self._shd = SocketHolder(listener.detach(), False, BACKLOG)  # type: ignore[assignment, call-arg]


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise PortUnavailableError(host=host, port=port, reason=str(error)) from error
    listener.setblocking(False)

    return listener
