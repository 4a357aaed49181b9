"""The embedded stream store: S2's API below ``/v1``."""

from __future__ import annotations

import asyncio
import re
from typing import Final
from urllib.parse import unquote

import msgspec

from td_runtime.gateway.errors import GatewayError, HeaderInvalidError
from td_runtime.gateway.exchange import Exchange, Receive, Reply, Scope, Send, json_reply
from td_runtime.gateway.platform.basins import Basins
from td_runtime.gateway.platform.faults import Faults
from td_runtime.gateway.platform.holder import Gate, Holder
from td_runtime.gateway.platform.records_api import RecordsApi, Target
from td_runtime.gateway.platform.refusals import reply_to
from td_runtime.gateway.platform.streams import NAME_BYTES_MAX, Streams

PREFIX: Final = "/v1/streams/"
_RECORDS: Final = re.compile(r"(?P<name>.+)/records(?P<tail>/tail)?")


class StreamStore:
    """ASGI application below ``/v1``."""

    def __init__(
        self,
        *,
        gate: Gate,
        basins: Basins,
        streams: Streams,
        faults: Faults,
        stopping: asyncio.Event,
    ) -> None:
        self._gate = gate
        self._basins = basins
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
            return Reply(404)
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
        if not 1 <= len(name.encode()) <= NAME_BYTES_MAX or "\0" in name:
            raise HeaderInvalidError(f"a stream's name has 1 to {NAME_BYTES_MAX} bytes, no NUL")
        stream = holder.rights.resolve(name)
        header = exchange.headers.get("s2-basin")
        if header is None:
            raise HeaderInvalidError("missing header `s2-basin`")
        basin = self._basins.get(header)
        holder.rights.require_basin(basin.name)

        return Target(holder, basin, basin.store_name(stream))
