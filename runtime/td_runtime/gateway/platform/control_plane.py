"""The embedded control plane: the run-stream routes of the Trigger.dev realtime API.

Its statuses, headers and texts are what the official clients expect, quirks included: the
answers about runs are plain text, the others JSON.
"""

from typing import Final
from urllib.parse import quote

from td_runtime.gateway.errors import (
    RecordsInvalidError,
    StoreUnavailableError,
    StreamNotFoundError,
)
from td_runtime.gateway.exchange import (
    Exchange,
    Receive,
    Reply,
    Scope,
    Send,
    json_reply,
    text_reply,
)
from td_runtime.gateway.platform import answers
from td_runtime.gateway.platform.access import Access
from td_runtime.gateway.platform.bodies import read_bytes
from td_runtime.gateway.platform.faults import Faults
from td_runtime.gateway.platform.input_routes import InputRoutes
from td_runtime.gateway.platform.issuer import Issuer
from td_runtime.gateway.platform.mints import MintLog
from td_runtime.gateway.platform.names import run_stream
from td_runtime.gateway.platform.parts import Parts, new_part_id
from td_runtime.gateway.platform.runs import Run, Runs, require_readable
from td_runtime.gateway.platform.streams import Streams
from td_runtime.gateway.platform.subscription import Subscriptions, parse_wait

PREFIX: Final = "/realtime/v1/streams/"
APPEND_BYTES_MAX: Final = 512 * 1024
TARGETS: Final = ("self", "parent", "root")


class ControlPlane:
    """ASGI application below ``/realtime/v1/streams``."""

    def __init__(
        self,
        *,
        access: Access,
        issuer: Issuer,
        runs: Runs,
        streams: Streams,
        parts: Parts,
        inputs: InputRoutes,
        subscriptions: Subscriptions,
        mints: MintLog,
        faults: Faults,
    ) -> None:
        self._access = access
        self._issuer = issuer
        self._runs = runs
        self._streams = streams
        self._parts = parts
        self._inputs = inputs
        self._subscriptions = subscriptions
        self._mints = mints
        self._faults = faults

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        exchange = Exchange(scope, receive, send)
        path = exchange.segments(PREFIX)
        if exchange.method == "PUT" and len(path) == 3:
            return await self._record_mint(exchange, path)

        return await self._pass(exchange, path)

    async def _record_mint(self, exchange: Exchange, path: list[str]) -> None:
        run_id, _, key = path
        with self._mints.record(slot_of(run_id, key)) as mint:
            exchange.on_answer = mint.finish
            async with exchange.watch(mint.abort):
                await self._pass(exchange, path)

    async def _pass(self, exchange: Exchange, path: list[str]) -> None:
        async def handle(exchange: Exchange) -> None:
            await answers.answer(exchange, lambda: self._handle(exchange, path))

        await self._faults.pass_through("control-plane", exchange, handle)

    async def _handle(self, exchange: Exchange, path: list[str]) -> Reply | None:
        match path:
            case [run_id, key] if run_id and key:
                return await self._subscribe(exchange, run_id, key)
            case [run_id, "input", key] if run_id and key:
                return await self._inputs.handle(exchange, run_id, key)
        self._access.identify(exchange).require_secret()
        match path:
            case [run_id, target, key] if run_id and key:
                return await self._stream(exchange, run_id, target, key)
            case [run_id, target, key, "append"] if run_id and key:
                return await self._append(exchange, run_id, target, key)

        return answers.NOT_FOUND

    async def _stream(self, exchange: Exchange, run_id: str, target: str, key: str) -> Reply:
        match exchange.method:
            case "PUT":
                return await self._initialise(run_id, target, key)
            case "HEAD":
                return await self._probe(run_id, target, key)
            case "POST":
                return json_reply(
                    400,
                    {"error": "Streams are version v2 here: append to the stream store instead"},
                )
            case "GET":
                return text_reply(405, "Method not allowed")

        return answers.method_not_allowed("PUT, HEAD, POST")

    async def _initialise(self, run_id: str, target: str, key: str) -> Reply:
        run = self._find_target(run_id, target)
        if isinstance(run, Reply):
            return run
        if run.is_finished:
            return answers.RUN_FINISHED_PUT

        return await self._issuer.issue(slot=slot_of(run.id, key), stream=run_stream(run.id, key))

    async def _probe(self, run_id: str, target: str, key: str) -> Reply:
        run = self._find_target(run_id, target)
        if isinstance(run, Reply):
            return run
        try:
            tail = await self._streams.tail(run_stream(run.id, key))
        except StreamNotFoundError:
            return Reply(200, headers=(("X-Last-Chunk-Index", "-1"),))

        return Reply(200, headers=(("X-Last-Chunk-Index", str(tail.seq_num - 1)),))

    async def _append(self, exchange: Exchange, run_id: str, target: str, key: str) -> Reply:
        if exchange.method != "POST":
            return answers.method_not_allowed("POST")
        body = await read_bytes(exchange, limit=APPEND_BYTES_MAX)
        run = self._find_target(run_id, target)
        if isinstance(run, Reply):
            return run
        if run.is_finished:
            return answers.RUN_FINISHED_APPEND
        part_id = exchange.headers.get("x-part-id") or new_part_id()
        try:
            await self._parts.append(run_stream(run.id, key), _text(body), part_id)
        except RecordsInvalidError as error:
            return answers.not_appended(413, str(error))
        except StoreUnavailableError as error:
            return answers.not_appended(500, str(error))

        return json_reply(200, {"ok": True})

    async def _subscribe(self, exchange: Exchange, run_id: str, key: str) -> Reply | None:
        caller = self._access.identify(exchange)
        if exchange.method != "GET":
            return answers.method_not_allowed("GET")
        run = self._runs.find(run_id)
        require_readable(caller, run_id, run)
        wait_s = parse_wait(exchange)
        if run is None:
            return answers.NOT_FOUND
        await self._subscriptions.send(exchange, run_stream(run_id, key), wait_s)

        return None

    def _find_target(self, run_id: str, target: str) -> Run | Reply:
        """The run that ``target`` means seen from ``run_id``, or the answer that refuses it."""
        if target not in TARGETS:
            return answers.params_error(f"target must be one of {TARGETS}")
        run = self._runs.find(run_id)
        if run is None:
            return answers.RUN_NOT_FOUND
        if target == "self":
            return run
        target_id = run.parent_id if target == "parent" else run.root_id
        if target_id is None:
            return answers.TARGET_NOT_FOUND

        return self._runs.find(target_id) or answers.RUN_NOT_FOUND


def slot_of(run_id: str, key: str) -> str:
    """The canonical text of the slot of a run's stream."""
    return f"run/{quote(run_id, safe='')}/{quote(key, safe='')}"


def _text(body: bytes) -> str:
    return body.decode("utf-8", "replace")
