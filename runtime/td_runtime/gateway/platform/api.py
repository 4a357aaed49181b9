"""The control plane's JSON API: ``/api/v1``, sessions, waits and tokens."""

from __future__ import annotations

from typing import Final

from td_runtime.gateway.exchange import Exchange, Receive, Reply, Scope, Send, json_reply
from td_runtime.gateway.platform import answers
from td_runtime.gateway.platform.access import ENVIRONMENT, Access
from td_runtime.gateway.platform.faults import Faults
from td_runtime.gateway.platform.session_routes import SessionRoutes
from td_runtime.gateway.platform.waitpoint_routes import WaitpointRoutes

PREFIX: Final = "/api/v1/"


class Api:
    """ASGI application below ``/api/v1``."""

    def __init__(
        self,
        *,
        access: Access,
        sessions: SessionRoutes,
        waitpoints: WaitpointRoutes,
        faults: Faults,
    ) -> None:
        self._access = access
        self._sessions = sessions
        self._waitpoints = waitpoints
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
        self._access.identify(exchange)

        return answers.NOT_FOUND

    def _claims(self, exchange: Exchange) -> Reply:
        """What a holder of the secret key puts into the tokens that it signs itself."""
        self._access.identify(exchange).require_secret()
        if exchange.method != "POST":
            return answers.method_not_allowed("POST")

        return json_reply(200, {"sub": ENVIRONMENT, "pub": True})
