"""Input streams: what a client sends to a run, below ``/realtime/v1/streams/<run>/input``."""

import secrets
from typing import Any, Final

import msgspec

from td_runtime.gateway.errors import RecordsInvalidError, StoreUnavailableError
from td_runtime.gateway.exchange import Exchange, Reply, json_reply
from td_runtime.gateway.platform import answers
from td_runtime.gateway.platform.access import Access
from td_runtime.gateway.platform.bodies import read_json
from td_runtime.gateway.platform.names import input_stream
from td_runtime.gateway.platform.parts import Parts
from td_runtime.gateway.platform.runs import Runs, require_readable
from td_runtime.gateway.platform.subscription import Subscriptions, parse_wait
from td_runtime.gateway.platform.waitpoints import Waitpoints

BODY_BYTES_MAX: Final = 1024 * 1024
ID_BYTES: Final = 6


class InputBody(msgspec.Struct):
    """The body of a send."""

    data: Any


class InputRoutes:
    """Answers requests about input streams."""

    def __init__(
        self,
        *,
        access: Access,
        runs: Runs,
        parts: Parts,
        subscriptions: Subscriptions,
        waitpoints: Waitpoints,
    ) -> None:
        self._access = access
        self._runs = runs
        self._parts = parts
        self._subscriptions = subscriptions
        self._waitpoints = waitpoints

    async def handle(self, exchange: Exchange, run_id: str, stream_id: str) -> Reply | None:
        """Answer a request for one input stream; None when it has been answered.

        Raises:
            RefusalError: With the answer.
        """
        match exchange.method:
            case "POST":
                return await self._send(exchange, run_id, stream_id)
            case "GET":
                return await self._subscribe(exchange, run_id, stream_id)

        return answers.method_not_allowed("GET, POST")

    async def _send(self, exchange: Exchange, run_id: str, stream_id: str) -> Reply:
        self._access.identify(exchange).require("write", "inputStreams", [run_id])
        body = await read_json(exchange, InputBody, limit=BODY_BYTES_MAX)
        run = self._runs.find(run_id)
        if run is None:
            return answers.not_appended(404, "Run not found")
        if run.is_finished:
            return answers.not_appended(400, "Cannot send to input stream on a completed run")
        text = msgspec.json.encode(body.data).decode()
        stream = input_stream(run_id, stream_id)
        try:
            await self._parts.append(stream, text, f"inp_{secrets.token_hex(ID_BYTES)}")
        except RecordsInvalidError as error:
            return answers.not_appended(413, str(error))
        except StoreUnavailableError as error:
            return answers.not_appended(500, str(error))
        await self._waitpoints.complete_stream(stream, text)

        return json_reply(200, {"ok": True})

    async def _subscribe(self, exchange: Exchange, run_id: str, stream_id: str) -> Reply | None:
        run = self._runs.find(run_id)
        require_readable(self._access.identify(exchange), run_id, run)
        wait_s = parse_wait(exchange)
        if run is None:
            return answers.NOT_FOUND
        await self._subscriptions.send(exchange, input_stream(run_id, stream_id), wait_s)

        return None
