"""The embedded control plane: the run-stream routes of the Trigger.dev realtime API.

Its statuses, headers and texts are what the official clients expect, quirks included: the
answers about runs are plain text, the others JSON.
"""

import asyncio
import re
import secrets
import string
from typing import Final
from urllib.parse import quote

import msgspec

from td_runtime.gateway.errors import (
    BodyTooLargeError,
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
from td_runtime.gateway.platform.faults import Faults
from td_runtime.gateway.platform.mints import MintLog
from td_runtime.gateway.platform.read_session import Place, ReadSession
from td_runtime.gateway.platform.reading import ReadLimit
from td_runtime.gateway.platform.records import StoredRecord, make_batch
from td_runtime.gateway.platform.runs import Run, Runs
from td_runtime.gateway.platform.streams import Streams
from td_runtime.gateway.platform.tokens import Tokens

PREFIX: Final = "/realtime/v1/streams/"
APPEND_BYTES_MAX: Final = 512 * 1024
WAIT_S_DEFAULT: Final = 60
WAIT_S_MAX: Final = 600
FLUSH_INTERVAL_MS: Final = 100
MAX_RETRIES: Final = 10
PART_ID_CHARS: Final = 7
TARGETS: Final = ("self", "parent", "root")
_PART_ID_ALPHABET: Final = string.ascii_letters + string.digits + "_-"


class Envelope(msgspec.Struct, frozen=True):
    """What a record's body is made of."""

    data: str
    id: str


class Issue(msgspec.Struct, frozen=True):
    """What every credential says besides its token."""

    endpoint: str
    basin: str


class ControlPlane:
    """ASGI application below ``/realtime/v1/streams``."""

    def __init__(
        self,
        *,
        secret_key: str,
        issue: Issue,
        runs: Runs,
        streams: Streams,
        tokens: Tokens,
        mints: MintLog,
        faults: Faults,
        stopping: asyncio.Event,
    ) -> None:
        self._secret_key = secret_key
        self._issue = issue
        self._runs = runs
        self._streams = streams
        self._tokens = tokens
        self._mints = mints
        self._faults = faults
        self._stopping = stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        exchange = Exchange(scope, receive, send)
        path = exchange.segments(PREFIX)
        if exchange.method == "PUT" and len(path) == 3:
            return await self._record_mint(exchange, path)

        return await self._faults.pass_through(
            "control-plane", exchange, lambda exchange: self._handle(exchange, path)
        )

    async def _record_mint(self, exchange: Exchange, path: list[str]) -> None:
        run_id, _, key = path
        with self._mints.record(slot_of(run_id, key)) as mint:
            exchange.on_answer = mint.finish
            async with exchange.watch(mint.abort):
                await self._faults.pass_through(
                    "control-plane", exchange, lambda exchange: self._handle(exchange, path)
                )

    async def _handle(self, exchange: Exchange, path: list[str]) -> None:
        if not exchange.has_key(self._secret_key):
            return await exchange.answer(json_reply(401, {"error": "Invalid or Missing API key"}))
        if len(path) == 2 and all(path):
            return await self._subscribe(exchange, *path)

        return await exchange.answer(await self._reply(exchange, path))

    async def _reply(self, exchange: Exchange, path: list[str]) -> Reply:
        try:
            match path:
                case [run_id, target, key] if run_id and key:
                    return await self._stream(exchange, run_id, target, key)
                case [run_id, target, key, "append"] if run_id and key:
                    return await self._append(exchange, run_id, target, key)
        except StoreUnavailableError as error:
            return json_reply(500, {"error": f"Internal Server Error: {error}"})

        return json_reply(404, {"error": "Not found"}, [("x-should-retry", "false")])

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

        return _method_not_allowed("PUT, HEAD, POST")

    async def _initialise(self, run_id: str, target: str, key: str) -> Reply:
        run = self._find_target(run_id, target)
        if isinstance(run, Reply):
            return run
        if run.is_finished:
            return text_reply(400, "Cannot initialize a realtime stream on a completed run")
        stream = stream_of(run.id, key)
        token = await self._tokens.issue(slot=slot_of(run.id, key), stream=stream)
        headers = (
            ("X-S2-Access-Token", token),
            ("X-S2-Basin", self._issue.basin),
            ("X-S2-Stream-Name", stream),
            ("X-S2-Flush-Interval-Ms", str(FLUSH_INTERVAL_MS)),
            ("X-S2-Max-Retries", str(MAX_RETRIES)),
            ("X-S2-Endpoint", self._issue.endpoint),
        )

        return json_reply(202, {"version": "v2"}, headers)

    async def _probe(self, run_id: str, target: str, key: str) -> Reply:
        run = self._find_target(run_id, target)
        if isinstance(run, Reply):
            return run
        try:
            tail = await self._streams.tail(stream_of(run.id, key))
        except StreamNotFoundError:
            return Reply(200, headers=(("X-Last-Chunk-Index", "-1"),))

        return Reply(200, headers=(("X-Last-Chunk-Index", str(tail.seq_num - 1)),))

    async def _append(self, exchange: Exchange, run_id: str, target: str, key: str) -> Reply:
        if exchange.method != "POST":
            return _method_not_allowed("POST")
        try:
            body = await _read_append(exchange)
        except BodyTooLargeError:
            return json_reply(413, {"error": "Request body too large"})
        run = self._find_target(run_id, target)
        if isinstance(run, Reply):
            return run
        if run.is_finished:
            return text_reply(400, "Cannot append to a realtime stream on a completed run")

        part_id = exchange.headers.get("x-part-id") or _new_part_id()
        return await self._append_part(stream_of(run.id, key), body, part_id)

    async def _append_part(self, stream: str, body: bytes, part_id: str) -> Reply:
        envelope = Envelope(body.decode("utf-8", "replace"), part_id)
        try:
            batch = make_batch([StoredRecord(None, msgspec.json.encode(envelope))])
        except RecordsInvalidError as error:
            return json_reply(413, {"ok": False, "error": str(error)})
        try:
            await self._streams.append(stream, batch, is_creating=True)
        except StoreUnavailableError as error:
            return json_reply(500, {"ok": False, "error": str(error)})

        return json_reply(200, {"ok": True})

    async def _subscribe(self, exchange: Exchange, run_id: str, key: str) -> None:
        if exchange.method != "GET":
            return await exchange.answer(_method_not_allowed("GET"))
        wait_s = _parse_wait(exchange.headers.get("timeout-seconds"))
        if isinstance(wait_s, str):
            return await exchange.answer(text_reply(400, wait_s))
        if self._runs.find(run_id) is None:
            return await exchange.answer(
                json_reply(404, {"error": "Not found"}, [("x-should-retry", "false")])
            )

        return await self._send_stream(exchange, stream_of(run_id, key), wait_s)

    async def _send_stream(self, exchange: Exchange, stream: str, wait_s: int) -> None:
        # A reader may come before the first writer; the stream then begins with it.
        tail = await self._streams.tail_or_create(stream)
        start = min(parse_cursor(exchange.headers.get("last-event-id", "")), tail.seq_num)
        session = ReadSession(
            self._streams,
            exchange,
            stream,
            Place(start, ReadLimit(), wait_s),
            format_="raw",
            stopping=self._stopping,
        )
        await session.run((("X-Stream-Version", "v2"),))

    def _find_target(self, run_id: str, target: str) -> Run | Reply:
        """The run that ``target`` means seen from ``run_id``, or the answer that refuses it."""
        if target not in TARGETS:
            return json_reply(
                400, {"error": "Params Error", "details": f"target must be one of {TARGETS}"}
            )
        run = self._runs.find(run_id)
        if run is None:
            return text_reply(404, "Run not found")
        if target == "self":
            return run
        target_id = run.parent_id if target == "parent" else run.root_id
        if target_id is None:
            return text_reply(404, "Target not found")

        return self._runs.find(target_id) or text_reply(404, "Run not found")


def slot_of(run_id: str, key: str) -> str:
    """The canonical text of the slot of a run's stream."""
    return f"run/{quote(run_id, safe='')}/{quote(key, safe='')}"


def stream_of(run_id: str, key: str) -> str:
    """The stream store's name for a run's stream."""
    return f"runs/{run_id}/{key}"


def parse_cursor(text: str) -> int:
    """The sequence number to go on from after a ``Last-Event-ID``.

    The digits before any ``-`` name the last record seen; whatever does not parse starts over,
    as upstream does.
    """
    digits = text.split("-", 1)[0]
    return int(digits) + 1 if re.fullmatch(r"[0-9]{1,18}", digits) else 0


def _parse_wait(text: str | None) -> int | str:
    """Seconds to wait, or the text that refuses them."""
    if text is None:
        return WAIT_S_DEFAULT
    if not re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", text):
        return "Invalid timeout seconds"
    seconds = int(text)
    if seconds < 1:
        return "Timeout seconds must be greater than 0"
    if seconds > WAIT_S_MAX:
        return "Timeout seconds must be less than 600"

    return seconds


async def _read_append(exchange: Exchange) -> bytes:
    # Upstream checks the announced length alone, and refuses a request without one.
    if exchange.content_length is None:
        raise BodyTooLargeError(limit=APPEND_BYTES_MAX)

    return await exchange.read_body(limit=APPEND_BYTES_MAX)


def _new_part_id() -> str:
    return "".join(secrets.choice(_PART_ID_ALPHABET) for _ in range(PART_ID_CHARS))


def _method_not_allowed(allow: str) -> Reply:
    return json_reply(405, {"error": "Method not allowed"}, [("Allow", allow)])
