"""The control plane's JSON API: runs, sessions, waits and tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from td_runtime.gateway.exchange import Exchange, Receive, Reply, Scope, Send, json_reply
from td_runtime.gateway.platform import answers
from td_runtime.gateway.platform.access import ENVIRONMENT, Access
from td_runtime.gateway.platform.faults import Faults
from td_runtime.gateway.platform.session_routes import SessionRoutes
from td_runtime.gateway.platform.waitpoint_routes import WaitpointRoutes

if TYPE_CHECKING:
    from td_runtime.gateway.platform.run_api import RunApi

PREFIX: Final = "/api/v1/"
RUN_PREFIXES: Final = ("/api/v1/", "/api/v2/", "/api/v3/")
RUN_RESOURCES: Final = frozenset({"runs", "tasks", "batches", "packets", "uploads"})


class Api:
    """ASGI application below ``/api``.

    Args:
        access: Who may do what.
        sessions: Answers about sessions.
        waitpoints: Answers about waits.
        runs: Makes who answers about runs; called with the first request for one.
        faults: What is to go wrong.
    """

    def __init__(
        self,
        *,
        access: Access,
        sessions: SessionRoutes,
        waitpoints: WaitpointRoutes,
        runs: Callable[[], RunApi],
        faults: Faults,
    ) -> None:
        self._access = access
        self._sessions = sessions
        self._waitpoints = waitpoints
        self._make_runs = runs
        self._runs: RunApi | None = None
        self._faults = faults

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""

        async def handle(exchange: Exchange) -> None:
            await answers.answer(exchange, lambda: self._handle(exchange))

        await self._faults.pass_through("control-plane", Exchange(scope, receive, send), handle)

    async def _handle(self, exchange: Exchange) -> Reply:
        match exchange.segments(PREFIX):
            case ["sessions", *rest] if all(rest):
                return await self._sessions.handle(exchange, rest)
            case ["runs", run_id, "input-streams", "wait"]:
                return await self._waitpoints.wait_for_input(exchange, run_id)
            case ["runs", run_id, "session-streams", "wait"]:
                return await self._waitpoints.wait_for_session(exchange, run_id)
            case ["waitpoints", "tokens", *rest] if rest and all(rest):
                return await self._waitpoints.handle(exchange, rest)
            case ["auth", "jwt", "claims"]:
                return self._claims(exchange)
        reply = await self._handle_runs(exchange)
        if reply is None:
            self._access.identify(exchange)

        return reply or answers.NOT_FOUND

    async def _handle_runs(self, exchange: Exchange) -> Reply | None:
        for prefix in RUN_PREFIXES:
            path = exchange.segments(prefix)
            if exchange.raw_path.startswith(prefix) and path[0] in RUN_RESOURCES:
                if self._runs is None:
                    # It imports much: on the loop it would hold up every other request.
                    made = await asyncio.to_thread(self._make_runs)
                    self._runs = self._runs or made
                return await self._runs.handle(exchange, path)

        return None

    def _claims(self, exchange: Exchange) -> Reply:
        """What a holder of the secret key puts into the tokens that it signs itself."""
        self._access.identify(exchange).require_secret()
        if exchange.method != "POST":
            return answers.method_not_allowed("POST")

        return json_reply(200, {"sub": ENVIRONMENT, "pub": True})
