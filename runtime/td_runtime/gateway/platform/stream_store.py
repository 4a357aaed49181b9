"""The embedded stream store: S2's API below ``/v1``."""

from __future__ import annotations

import asyncio
import re
from typing import Final
from urllib.parse import unquote

import msgspec

from td_runtime.gateway.errors import GatewayError
from td_runtime.gateway.exchange import Exchange, Receive, Reply, Scope, Send, json_reply
from td_runtime.gateway.platform.basins import Basins
from td_runtime.gateway.platform.faults import Faults
from td_runtime.gateway.platform.holder import Gate, Holder
from td_runtime.gateway.platform.issued_tokens import IssuedTokens
from td_runtime.gateway.platform.records_api import RecordsApi, Target
from td_runtime.gateway.platform.refusals import reply_to
from td_runtime.gateway.platform.store_admin import StoreAdmin, check_name
from td_runtime.gateway.platform.streams import Streams

PREFIX: Final = "/v1/streams/"
_RECORDS: Final = re.compile(r"(?P<name>.+)/records(?P<tail>/tail)?")


class StreamStore:
    """ASGI application below ``/v1``."""

    def __init__(
        self,
        *,
        gate: Gate,
        basins: Basins,
        issued: IssuedTokens,
        streams: Streams,
        faults: Faults,
        stopping: asyncio.Event,
    ) -> None:
        self._gate = gate
        self._admin = StoreAdmin(basins=basins, streams=streams, issued=issued)
        self._faults = faults
        self._records = RecordsApi(streams, stopping)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await self._faults.pass_through(
            "stream-store", Exchange(scope, receive, send), self._handle
        )

    async def _handle(self, exchange: Exchange) -> None:
        try:
            reply = await self._route(exchange)
        except GatewayError as error:
            reply = reply_to(error)
        except msgspec.DecodeError as error:
            reply = json_reply(400, {"code": "bad_json", "message": str(error)})
        if reply is not None:
            await exchange.answer(reply)

    async def _route(self, exchange: Exchange) -> Reply | None:
        holder = self._gate.admit(exchange)
        path = exchange.raw_path
        route = _RECORDS.fullmatch(path.removeprefix(PREFIX)) if path.startswith(PREFIX) else None
        if route is None:
            return await self._admin.answer(exchange, holder)
        target = self._target(exchange, holder, unquote(route["name"]))
        if route["tail"] is not None:
            if exchange.method != "GET":
                return Reply(405, headers=(("allow", "GET"),))
            return await self._records.check_tail(exchange, target)
        if exchange.method == "POST":
            return await self._records.append(exchange, target)
        if exchange.method == "GET":
            return await self._records.read(exchange, target)

        return Reply(405, headers=(("allow", "GET, POST"),))

    def _target(self, exchange: Exchange, holder: Holder, name: str) -> Target:
        """The stream that is meant.

        Raises:
            AccessError: The token is not good for it.
            HeaderInvalidError: The basin's header is missing, or the name is no stream's name.
            BasinNotFoundError: There is no such basin.
        """
        stream = holder.rights.resolve(check_name(name))
        basin = self._admin.basin_of(exchange, holder)

        return Target(holder, basin, basin.store_name(stream))
