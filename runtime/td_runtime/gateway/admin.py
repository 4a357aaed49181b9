"""Routes about the gateway itself: health, a ping for keys, statistics, faults."""

import time
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import TypeAlias

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from td_runtime.gateway.errors import BodyTooLargeError
from td_runtime.gateway.exchange import BODY_BYTES_MAX, JSON_TYPE, Exchange
from td_runtime.gateway.journal import Journal
from td_runtime.gateway.platform import Platform
from td_runtime.gateway.platform.faults import EndTokens, Fault
from td_runtime.gateway.platform.names import from_header

Handler: TypeAlias = Callable[[Request], Awaitable[Response]]


class Admin:
    """The admin routes; all but the health checks need the secret key."""

    def __init__(
        self, platform: Platform, *, secret_key: str, allow_faults: bool, journal: Journal
    ) -> None:
        self._platform = platform
        self._secret_key = secret_key
        self._allow_faults = allow_faults
        self._journal = journal
        self._started_at = time.time()

    def routes(self) -> list[Route]:
        """The routes, for the application to mount."""
        faults = self._needs_key(self._needs_faults(self.faults))
        return [
            Route("/healthz", self.health, methods=["GET"]),
            Route("/livez", self.health, methods=["GET"]),
            Route("/readyz", self.readiness, methods=["GET"]),
            Route("/platform/v1/ping", self._needs_key(self.health), methods=["GET"]),
            Route("/platform/v1/stats", self._needs_key(self.stats), methods=["GET"]),
            Route("/platform/v1/faults", faults, methods=["GET", "POST", "DELETE"]),
        ]

    async def health(self, _request: Request) -> Response:
        """Say that requests are answered."""
        return _json(200, {"ok": True})

    async def readiness(self, _request: Request) -> Response:
        """Say whether runs are accepted and records stored, and if not, why."""
        problem = await self._platform.why_not_ready()
        if problem is not None:
            return _json(503, {"ok": False, "error": problem})

        return _json(200, {"ok": True})

    async def stats(self, _request: Request) -> Response:
        """Count mints and records."""
        counts = await self._platform.streams.counts()
        return _json(
            200,
            {
                "started_at": self._started_at,
                "puts": self._platform.mints.counts,
                "mints": self._platform.mints.mints,
                "records": {
                    from_header(name).removeprefix("runs/"): n for name, n in counts.items()
                },
            },
        )

    async def faults(self, request: Request) -> Response:
        """List, add or clear faults; end tokens."""
        match request.method:
            case "POST":
                return await self._add_fault(request)
            case "DELETE":
                self._platform.faults.clear()
                self._journal.write("info", "fault.cleared")

        return _json(200, {"faults": self._platform.faults.active})

    async def _add_fault(self, request: Request) -> Response:
        try:
            # Admin bodies are small; Starlette's own reader has no limit.
            exchange = Exchange(request.scope, request.receive, request._send)
            body = await exchange.read_body(limit=BODY_BYTES_MAX)
            fault = _parse_fault(body)
        except msgspec.DecodeError as error:
            return _json(400, {"error": f"not a fault: {error}"})
        except BodyTooLargeError as error:
            return _json(413, {"error": str(error)})
        self._journal.write("warning", "fault.added", **msgspec.to_builtins(fault))
        if isinstance(fault, EndTokens):
            return _json(200, {"tokens": await self._end_tokens(fault)})
        self._platform.faults.add(fault)

        return _json(200, {"faults": self._platform.faults.active})

    async def _end_tokens(self, fault: EndTokens) -> int:
        tokens = self._platform.tokens
        if fault.kind == "expire-tokens":
            return await tokens.expire_all(slot=fault.slot)

        return await tokens.revoke_all(slot=fault.slot)

    def _needs_key(self, handler: Handler) -> Handler:
        @wraps(handler)
        async def check(request: Request) -> Response:
            exchange = Exchange(request.scope, request.receive, request._send)
            if not exchange.has_key(self._secret_key):
                return _json(401, {"error": "Invalid or Missing API key"})
            return await handler(request)

        return check

    def _needs_faults(self, handler: Handler) -> Handler:
        @wraps(handler)
        async def check(request: Request) -> Response:
            if not self._allow_faults:
                error = "faults are off: start with --allow-faults to test with them"
                return _json(403, {"error": error})
            return await handler(request)

        return check


def _parse_fault(body: bytes) -> Fault | EndTokens:
    kind = msgspec.json.decode(body, type=_Kind).kind
    if kind in {"expire-tokens", "revoke-tokens"}:
        return msgspec.json.decode(body, type=EndTokens)

    return msgspec.json.decode(body, type=Fault)


class _Kind(msgspec.Struct):
    kind: str


def _json(status: int, document: object) -> Response:
    return Response(msgspec.json.encode(document), status, media_type=JSON_TYPE)
