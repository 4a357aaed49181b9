"""One HTTP request and its answer, over bare ASGI.

The platform's routes are matched on the raw path: a stream key may hold a percent-encoded slash,
which is gone from the decoded path that a framework routes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final
from urllib.parse import parse_qsl, unquote

import msgspec

from td_runtime.gateway.errors import BodyTooLargeError, ClientGoneError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

BODY_BYTES_MAX: Final = 16 * 1024 * 1024
JSON_TYPE: Final = "application/json"
TEXT_TYPE: Final = "text/plain; charset=utf-8"


class Reply(msgspec.Struct, frozen=True):
    """A whole answer."""

    status: int
    body: bytes = b""
    content_type: str = TEXT_TYPE
    headers: tuple[tuple[str, str], ...] = ()


def json_reply(status: int, document: object, headers: Iterable[tuple[str, str]] = ()) -> Reply:
    """An answer with a JSON document."""
    return Reply(status, msgspec.json.encode(document), JSON_TYPE, tuple(headers))


def text_reply(status: int, text: str) -> Reply:
    """An answer in plain text."""
    return Reply(status, text.encode())


class Exchange:
    """A request being answered.

    Attributes:
        is_gone: The client has closed its connection; known only inside ``watch``, or by reading.
        is_dropping: Close the connection in place of the answer (a fault).
        on_answer: Called with the status right before the answer goes out.
    """

    __slots__ = (
        "_is_read",
        "_receive",
        "_send",
        "headers",
        "is_dropping",
        "is_gone",
        "method",
        "on_answer",
        "raw_path",
        "scope",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.method: str = scope["method"]
        self.raw_path: str = scope["raw_path"].decode("latin-1")
        self.headers = {
            name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in scope["headers"]
        }
        self.is_gone = False
        self._is_read = False
        self.is_dropping = False
        self.on_answer: Callable[[int], None] | None = None
        self._receive = receive
        self._send = send

    @property
    def query(self) -> dict[str, str]:
        """The query's parameters; of a repeated one the last counts."""
        return dict(parse_qsl(self.scope["query_string"].decode("latin-1")))

    @property
    def bearer(self) -> str:
        """The bearer token, or the empty text."""
        scheme, _, token = self.headers.get("authorization", "").partition(" ")
        return token.strip() if scheme.lower() == "bearer" else ""

    @property
    def content_length(self) -> int | None:
        """The announced length of the body, None if there is no (valid) one."""
        text = self.headers.get("content-length", "")
        return int(text) if text.isdecimal() and text.isascii() else None

    def segments(self, prefix: str) -> list[str]:
        """The decoded segments of the path below ``prefix``."""
        return [unquote(segment) for segment in self.raw_path.removeprefix(prefix).split("/")]

    def has_key(self, secret_key: str) -> bool:
        """Whether the bearer is the secret key; takes the same time for every wrong one."""
        return hmac.compare_digest(self.bearer.encode(), secret_key.encode())

    async def read_body(self, *, limit: int = BODY_BYTES_MAX) -> bytes:
        """The whole body.

        Raises:
            BodyTooLargeError: It is longer than ``limit`` bytes. What came until then is dropped.
            ClientGoneError: It broke off.
        """
        if (self.content_length or 0) > BODY_BYTES_MAX:
            raise BodyTooLargeError(limit=BODY_BYTES_MAX)
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            part: bytes = message.get("body", b"")
            size += len(part)
            if size > BODY_BYTES_MAX:
                raise BodyTooLargeError(limit=limit)
            # Past the limit the rest is read but not kept: answering while the client still
            # sends would have the connection reset, and the client would not see the answer.
            if size <= limit:
                parts.append(part)
            if not message.get("more_body"):
                break
        # The server ends a body that broke off like one that is complete.
        if message["type"] == "http.disconnect" or size != (self.content_length or size):
            raise ClientGoneError("the body broke off")
        if size > limit:
            raise BodyTooLargeError(limit=limit)

        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def read_part(self) -> bytes | None:
        """The next part of a body that may never end; None when it has ended.

        A client that broke off ends it too; ``is_gone`` then says so if it is known.
        """
        if self._is_read:
            return None
        message = await self._receive()
        self.is_gone = message["type"] == "http.disconnect"
        self._is_read = self.is_gone or not message.get("more_body")
        part: bytes = message.get("body", b"")

        return part or (None if self._is_read else b"")

    async def answer(self, reply: Reply) -> None:
        """Send a whole answer."""
        headers = [("content-length", str(len(reply.body))), *reply.headers]
        if reply.body:
            headers.append(("content-type", reply.content_type))
        if await self._start(reply.status, headers):
            body = b"" if self.method == "HEAD" else reply.body
            await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def start_stream(self, headers: Iterable[tuple[str, str]]) -> bool:
        """Send the head of an open-ended answer; False if the connection was dropped instead."""
        return await self._start(200, headers)

    async def send_chunk(self, chunk: bytes, *, is_last: bool = False) -> None:
        """Send a part of an open-ended answer."""
        await self._send({"type": "http.response.body", "body": chunk, "more_body": not is_last})

    @contextlib.asynccontextmanager
    async def watch(self, on_gone: Callable[[], None]) -> AsyncIterator[None]:
        """Within the block, call ``on_gone`` once when the client goes away.

        The body must have been read before, or be of no interest.
        """
        task = asyncio.get_running_loop().create_task(self._await_disconnect(on_gone))
        try:
            yield
        finally:
            task.cancel()

    def drop(self) -> None:
        """Close the client's connection without an answer."""
        if self.on_answer is not None:
            self.on_answer(0)
        host, port = self.scope["client"]
        _shut_down(host, int(port))

    async def _start(self, status: int, headers: Iterable[tuple[str, str]]) -> bool:
        if self.is_dropping:
            self.drop()
            return False
        if self.on_answer is not None:
            self.on_answer(status)
        await self._send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [(n.encode("latin-1"), v.encode("latin-1")) for n, v in headers],
            }
        )

        return True

    async def _await_disconnect(self, on_gone: Callable[[], None]) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.is_gone = True
        on_gone()


def _shut_down(host: str, port: int) -> None:
    """Shut down the one socket of this process whose peer is the given address.

    The server owns the sockets and offers no way to close one, so it is found among the
    process's descriptors; the server then sees a closed connection and frees it.
    """
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError), _borrow_socket(int(name)) as candidate:
            if candidate.getpeername()[:2] == (host, port):
                candidate.shutdown(socket.SHUT_RDWR)
                return


def _borrow_socket(fd: int) -> socket.socket:
    """Return a socket of its own for a descriptor; OSError when that is none, and nothing leaks."""
    copy = os.dup(fd)
    try:
        return socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        raise
