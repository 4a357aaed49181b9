"""What every request passes first: Host and Origin, and the last resort for errors."""

import asyncio
import ipaddress
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Final

from td_runtime.gateway import cors
from td_runtime.gateway.errors import ClientGoneError
from td_runtime.gateway.exchange import (
    Exchange,
    Message,
    Receive,
    Reply,
    Scope,
    Send,
    json_reply,
)
from td_runtime.gateway.journal import Journal
from td_runtime.gateway.settings import Settings

Application = Callable[[Scope, Receive, Send], Awaitable[None]]
HTTP_PORT: Final = "80"
LOOPBACK_NAMES: Final = ("localhost", "127.0.0.1", "[::1]")


class Guard:
    """ASGI application around all others.

    A page in a browser can be made to send requests here (DNS rebinding, plain cross-site
    requests); it cannot forge Host or Origin, so both are checked before anything else.

    Args:
        application: What is guarded.
        settings: Where it listens.
        journal: Takes the errors that nobody else caught.
        origins: The web pages that may send requests, as ``https://app.example``.
    """

    def __init__(
        self,
        application: Application,
        *,
        settings: Settings,
        journal: Journal,
        origins: Collection[str] = (),
    ) -> None:
        self._application = application
        self._journal = journal
        self._under_way: set[asyncio.Task[object]] = set()
        self.allow_origins(origins)
        self._port = str(settings.port)
        self._is_wildcard = settings.is_wildcard
        self._hosts = {settings.netloc, f"localhost:{settings.port}"}
        if settings.is_wildcard or settings.netloc.rpartition(":")[0] in LOOPBACK_NAMES:
            self._hosts |= {f"{name}:{settings.port}" for name in LOOPBACK_NAMES}

    def allow_origins(self, origins: Collection[str]) -> None:
        """Let these web pages send requests from now on, and no others."""
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on."""
        if scope["type"] != "http":
            return
        exchange = Exchange(scope, receive, send)
        refusal = self._check(scope)
        if refusal is not None:
            await exchange.answer(refusal)
            return
        origin = exchange.headers.get("origin")
        if origin is not None:
            send = cors.add_origin(send, origin)
            if cors.is_preflight(scope, exchange.headers):
                await Exchange(scope, receive, send).answer(cors.allow(exchange.headers))
                return
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  the server makes one for each request
        self._under_way.add(task)
        try:
            await self._serve(scope, receive, send)
        finally:
            self._under_way.discard(task)

    async def settled(self) -> None:
        """Return when every request that is under way now has been given its whole answer."""
        if self._under_way:
            await asyncio.wait(self._under_way)

    def _check(self, scope: Scope) -> Reply | None:
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1 or not self._is_our_host(hosts[0].decode("latin-1")):
            return _refuse("Host header", b", ".join(hosts))
        origins = [value for name, value in scope["headers"] if name == b"origin"]
        is_allowed = all(origin.decode("latin-1") in self._origins for origin in origins)
        if len(origins) > 1 or not is_allowed:
            return _refuse("Origin", b", ".join(origins))

        return None

    def _is_our_host(self, host: str) -> bool:
        name, port = _split_host(host)
        if f"{name}:{port}" in self._hosts:
            return True
        # Listening everywhere, any of the machine's addresses is right; a rebound name is not.
        return self._is_wildcard and port == self._port and _is_address(name)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_started = False

        async def note_start(message: Message) -> None:
            nonlocal is_started
            is_started = True
            await send(message)

        started_at = time.monotonic()
        try:
            await self._application(scope, receive, note_start)
        except ClientGoneError as error:
            await Exchange(scope, receive, send).answer(json_reply(499, {"error": str(error)}))
        except Exception as error:  # noqa: BLE001  the border: nothing may end the connection
            self._journal.write(
                "error",
                "request.failed",
                method=scope["method"],
                path=scope["path"],
                duration_s=round(time.monotonic() - started_at, 6),
                error=f"{type(error).__name__}: {error}",
                exc_info=error,
            )
            if not is_started:
                await Exchange(scope, receive, send).answer(
                    json_reply(500, {"error": "Internal Server Error"})
                )


def _split_host(host: str) -> tuple[str, str]:
    """Return name and port of a Host header; clients leave out HTTP's own port."""
    name, colon, port = host.rpartition(":")
    if not colon or port.endswith("]"):  # an IPv6 address alone
        return host, HTTP_PORT

    return name, port


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _refuse(what: str, value: bytes) -> Reply:
    shown = value.decode("latin-1")
    return json_reply(403, {"error": f"{what} `{shown}` is not allowed here", "code": "forbidden"})
