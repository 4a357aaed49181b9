"""What browsers are told about requests from other origins, of those that are allowed at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from td_runtime.gateway.exchange import Message, Reply, Scope, Send

METHODS: Final = "GET, HEAD, POST, PUT, PATCH, DELETE"
MAX_AGE_S: Final = 7200


def is_preflight(scope: Scope, headers: Mapping[str, str]) -> bool:
    """Whether a browser asks if it may send what a page wants to send."""
    return scope["method"] == "OPTIONS" and "access-control-request-method" in headers


def allow(headers: Mapping[str, str]) -> Reply:
    """The answer to a preflight from an allowed origin; the caller adds that origin."""
    answer = [
        ("Access-Control-Allow-Methods", METHODS),
        # Named one by one: `*` would not stand for Authorization.
        ("Access-Control-Allow-Headers", headers.get("access-control-request-headers", "")),
        ("Access-Control-Max-Age", str(MAX_AGE_S)),
    ]
    if headers.get("access-control-request-private-network") == "true":
        answer.append(("Access-Control-Allow-Private-Network", "true"))

    return Reply(204, headers=tuple(answer))


def add_origin(send: Send, origin: str) -> Send:
    """A ``send`` whose answers, errors too, a page of ``origin`` may read."""
    headers = (
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-expose-headers", b"*"),
        (b"vary", b"Origin"),
    )

    async def send_with_origin(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *headers]}
        await send(message)

    return send_with_origin
