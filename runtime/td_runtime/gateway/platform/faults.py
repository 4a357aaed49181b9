"""Faults on demand: answers, delays and cut connections, to test what runs against us."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Final, Literal, get_args

import msgspec

from td_runtime.gateway.exchange import Exchange, Reply, json_reply

Target = Literal["control-plane", "stream-store"]
TARGETS: Final[tuple[Target, ...]] = get_args(Target)

_CODES: Final = {
    400: "bad_json",
    401: "authn",
    403: "permission_denied",
    404: "stream_not_found",
    408: "request_timeout",
    409: "transaction_conflict",
    422: "invalid",
    429: "rate_limited",
    500: "other",
    502: "hot_server",
    503: "unavailable",
    504: "upstream_timeout",
}


class Fault(msgspec.Struct, forbid_unknown_fields=True):
    """What to do to requests.

    ``count`` is how many requests it is still for, None for all. ``drop`` closes the connection
    before anything happens, ``drop-after`` in place of the answer, when all is done and stored.
    """

    kind: Literal["status", "delay", "drop", "drop-after"]
    target: Target
    count: Annotated[int, msgspec.Meta(ge=1)] | None = None
    status: Annotated[int, msgspec.Meta(ge=400, le=599)] = 503
    seconds: Annotated[float, msgspec.Meta(ge=0, le=600)] = 0.0
    retry_after: Annotated[float, msgspec.Meta(ge=0)] | None = None


class EndTokens(msgspec.Struct, forbid_unknown_fields=True):
    """End all live tokens at once, or those of one slot."""

    kind: Literal["expire-tokens", "revoke-tokens"]
    slot: str | None = None


class Faults:
    """The faults in force, oldest first. They end with the process."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []

    @property
    def active(self) -> list[Fault]:
        """The faults in force."""
        return list(self._faults)

    def add(self, fault: Fault) -> None:
        """Put a fault in force for the requests that arrive from now on."""
        self._faults.append(fault)

    def clear(self) -> None:
        """End all faults; requests that are being delayed stay so."""
        self._faults.clear()

    async def pass_through(
        self,
        target: Target,
        exchange: Exchange,
        handler: Callable[[Exchange], Awaitable[None]],
    ) -> None:
        """Handle a request, or do to it what the faults say: delays first, then one other."""
        for fault in self._take(target) if self._faults else ():
            if fault.kind == "delay":
                await asyncio.sleep(fault.seconds)
            elif fault.kind == "status":
                return await exchange.answer(_answer(fault))
            elif fault.kind == "drop":
                return exchange.drop()
            else:
                exchange.is_dropping = True

        return await handler(exchange)

    def _take(self, target: Target) -> list[Fault]:
        matching = [fault for fault in self._faults if fault.target == target]
        delays = [fault for fault in matching if fault.kind == "delay"]
        others = [fault for fault in matching if fault.kind != "delay"][:1]
        for fault in delays + others:
            self._use(fault)

        return delays + others

    def _use(self, fault: Fault) -> None:
        if fault.count is None:
            return
        fault.count -= 1
        if fault.count == 0:
            self._faults.remove(fault)


def _answer(fault: Fault) -> Reply:
    message = "a fault that was asked for"
    headers = [] if fault.retry_after is None else [("retry-after", f"{fault.retry_after:g}")]
    if fault.target == "control-plane":
        return json_reply(fault.status, {"error": message}, headers)

    code = _CODES.get(fault.status, "other")
    return json_reply(fault.status, {"code": code, "message": message}, headers)
