"""The embedded stream store: S2's data plane in JSON, below ``/v1``."""

import asyncio
import re
from typing import Final
from urllib.parse import unquote

import msgspec

from td_runtime.gateway.errors import (
    BasinNotFoundError,
    BodyTooLargeError,
    ClientGoneError,
    FencingTokenMismatchError,
    FormatUnsupportedError,
    GatewayError,
    HeaderInvalidError,
    PermissionDeniedError,
    QueryInvalidError,
    RangeUnsatisfiableError,
    RecordsInvalidError,
    SeqNumMismatchError,
    StoreUnavailableError,
    StreamNotFoundError,
    TokenRefusedError,
)
from td_runtime.gateway.exchange import (
    JSON_TYPE,
    Exchange,
    Receive,
    Reply,
    Scope,
    Send,
    json_reply,
)
from td_runtime.gateway.platform.faults import Faults
from td_runtime.gateway.platform.queries import (
    NUMBER_MAX,
    Start,
    cap,
    parse_limit,
    parse_start,
    parse_wait,
    resume,
)
from td_runtime.gateway.platform.read_session import Format, Place, ReadSession, encode_batch
from td_runtime.gateway.platform.reading import ReadLimit, ReadResult
from td_runtime.gateway.platform.records import (
    TIMESTAMP_MAX,
    StreamPosition,
    parse_append,
)
from td_runtime.gateway.platform.streams import NAME_BYTES_MAX, Streams
from td_runtime.gateway.platform.tokens import Tokens

BASIN: Final = "td-embedded"
PREFIX: Final = "/v1/streams/"
UNARY_WAIT_S_MAX: Final = 60

# One line an error: status and code. The special bodies of 412 and 416 are in ``_special``.
_CODES: Final[dict[type[GatewayError], tuple[int, str]]] = {
    RecordsInvalidError: (422, "invalid"),
    QueryInvalidError: (400, "bad_query"),
    HeaderInvalidError: (400, "bad_header"),
    FormatUnsupportedError: (415, "unsupported_media_type"),
    BodyTooLargeError: (413, "payload_too_large"),
    ClientGoneError: (499, "client_hangup"),
    TokenRefusedError: (401, "authn"),
    PermissionDeniedError: (403, "permission_denied"),
    StreamNotFoundError: (404, "stream_not_found"),
    BasinNotFoundError: (404, "basin_not_found"),
    StoreUnavailableError: (503, "unavailable"),
}
_ROUTE: Final = re.compile(r"(?P<name>.+)/records(?P<tail>/tail)?")


class StreamStore:
    """ASGI application below ``/v1``."""

    def __init__(
        self,
        *,
        secret_key: str,
        streams: Streams,
        tokens: Tokens,
        faults: Faults,
        stopping: asyncio.Event,
    ) -> None:
        self._secret_key = secret_key
        self._streams = streams
        self._tokens = tokens
        self._faults = faults
        self._stopping = stopping

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
        if not exchange.bearer:
            raise TokenRefusedError("the access token is missing")
        route = _ROUTE.fullmatch(exchange.raw_path.removeprefix(PREFIX))
        if route is None or not exchange.raw_path.startswith(PREFIX):
            if not exchange.has_key(self._secret_key):
                self._tokens.identify(exchange.bearer)
            return Reply(404)
        name = unquote(route["name"])
        if route["tail"] is not None:
            return await self._check_tail(exchange, name)
        if exchange.method == "POST":
            return await self._append(exchange, name)
        if exchange.method == "GET":
            return await self._read(exchange, name)

        return Reply(405, headers=(("allow", "GET, POST"),))

    async def _append(self, exchange: Exchange, name: str) -> Reply:
        ops = self._admit(exchange, name)
        _require_json(exchange)
        is_base64 = _parse_format(exchange) == "base64"
        batch = parse_append(await exchange.read_body(), is_base64=is_base64)
        _require_ops(batch.ops, ops)
        ack = await self._streams.append(
            name, batch, is_creating=ops is None or "create-stream" in ops
        )

        return json_reply(200, ack)

    async def _check_tail(self, exchange: Exchange, name: str) -> Reply:
        if exchange.method != "GET":
            return Reply(405, headers=(("allow", "GET"),))
        _require_ops({"check-tail"}, self._admit(exchange, name))

        return json_reply(200, {"tail": await self._streams.tail(name)})

    async def _read(self, exchange: Exchange, name: str) -> Reply | None:
        _require_ops({"read"}, self._admit(exchange, name))
        query = exchange.query
        start, limit, wait_s = parse_start(query), parse_limit(query), parse_wait(query)
        format_ = _parse_format(exchange)
        if "text/event-stream" in exchange.headers.get("accept", ""):
            start, limit = resume(exchange.headers.get("last-event-id"), start, limit)
            place = await self._place(name, start, limit, wait_s)
            await self._send_events(exchange, name, place, format_)
            return None

        place = await self._place(name, start, cap(limit), min(wait_s or 0, UNARY_WAIT_S_MAX))
        return await self._read_once(exchange, name, place, format_)

    async def _place(
        self, name: str, start: Start, limit: ReadLimit, wait_s: float | None
    ) -> Place:
        """Turn what was asked for into a sequence number.

        Raises:
            RangeUnsatisfiableError: It is beyond the tail, or at it without leave to wait.
            RecordsInvalidError: It starts at or after the time it is to end before.
        """
        if start.timestamp is not None and start.timestamp >= (limit.until or NUMBER_MAX + 1):
            raise RecordsInvalidError("start `timestamp` exceeds or equal to `until`")
        tail = await self._streams.tail(name)
        if wait_s is None and limit.is_bounded:
            wait_s = 0
        seq_num = await self._resolve(name, start, tail)
        if seq_num > tail.seq_num and start.is_clamped:
            seq_num = tail.seq_num
        if seq_num > tail.seq_num or (seq_num == tail.seq_num and wait_s == 0):
            raise RangeUnsatisfiableError(seq_num=tail.seq_num, timestamp=tail.timestamp)

        return Place(seq_num, limit, wait_s)

    async def _resolve(self, name: str, start: Start, tail: StreamPosition) -> int:
        if start.seq_num is not None:
            return start.seq_num
        if start.timestamp is not None:
            return await self._streams.find(name, min(start.timestamp, TIMESTAMP_MAX))

        return max(0, tail.seq_num - (start.tail_offset or 0))

    async def _send_events(
        self, exchange: Exchange, name: str, place: Place, format_: Format
    ) -> None:
        session = ReadSession(
            self._streams, exchange, name, place, format_=format_, stopping=self._stopping
        )
        await session.run()

    async def _read_once(
        self, exchange: Exchange, name: str, place: Place, format_: Format
    ) -> Reply:
        result = await self._streams.read(name, place.start, place.limit)
        if not result.records and not result.is_spent and place.wait_s:
            result = await self._long_poll(exchange, name, place)
        if not result.records and not result.is_spent and not place.wait_s:  # all was trimmed
            tail = result.tail
            raise RangeUnsatisfiableError(seq_num=tail.seq_num, timestamp=tail.timestamp)

        return Reply(200, encode_batch(result, format_), JSON_TYPE)

    async def _long_poll(self, exchange: Exchange, name: str, place: Place) -> ReadResult:
        wake = asyncio.Event()
        timer = asyncio.get_running_loop().call_later(place.wait_s or 0, wake.set)
        self._streams.follow(name, wake)
        try:
            async with exchange.watch(wake.set):
                # Appended between the first look and ``follow``? Then it is here already.
                result = await self._streams.read(name, place.start, place.limit)
                if result.records:
                    return result
                await wake.wait()
                return await self._streams.read(name, place.start, place.limit)
        finally:
            timer.cancel()
            self._streams.unfollow(name, wake)

    def _admit(self, exchange: Exchange, name: str) -> frozenset[str] | None:
        """The operations the bearer may do on the stream; None for all of them.

        Raises:
            AccessError: The token is not good, or not good for this stream.
            HeaderInvalidError: The basin's header is missing, or the name is no stream's name.
        """
        if not 1 <= len(name.encode()) <= NAME_BYTES_MAX or "\0" in name:
            raise HeaderInvalidError(f"a stream's name has 1 to {NAME_BYTES_MAX} bytes, no NUL")
        # The secret key is to this store what an account's own token is to S2.
        ops = (
            None
            if exchange.has_key(self._secret_key)
            else self._tokens.check(exchange.bearer, stream=name).ops
        )
        basin = exchange.headers.get("s2-basin")
        if basin is None:
            raise HeaderInvalidError("missing header `s2-basin`")
        if basin != BASIN:
            raise BasinNotFoundError(f"basin `{basin}` not found; there is only `{BASIN}`")

        return ops


def reply_to(error: GatewayError) -> Reply:
    """The answer that tells a client of an error."""
    special = _special(error)
    if special is not None:
        return special
    status, code = _CODES[type(error)]

    return json_reply(status, {"code": code, "message": str(error)})


def _special(error: GatewayError) -> Reply | None:
    match error:
        case SeqNumMismatchError():
            return json_reply(412, {"seq_num_mismatch": error.expected})
        case FencingTokenMismatchError():
            return json_reply(412, {"fencing_token_mismatch": error.current})
        case RangeUnsatisfiableError():
            tail = StreamPosition(error.seq_num, error.timestamp)
            return json_reply(416, {"tail": tail})

    return None


def _require_ops(needed: set[str], allowed: frozenset[str] | None) -> None:
    missing = set() if allowed is None else needed - allowed
    if missing:
        raise PermissionDeniedError(
            f"the access token does not allow {', '.join(sorted(missing))}; it allows"
            f" {', '.join(sorted(allowed or ()))}"
        )


def _require_json(exchange: Exchange) -> None:
    content_type = exchange.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != JSON_TYPE:
        raise FormatUnsupportedError(
            f"content type `{content_type}` is not supported: send `{JSON_TYPE}`"
        )
    encoding = exchange.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise FormatUnsupportedError(f"content encoding `{encoding}` is not supported")


def _parse_format(exchange: Exchange) -> Format:
    match exchange.headers.get("s2-format", "raw").lower():
        case "raw":
            return "raw"
        case "base64":
            return "base64"
        case other:
            raise HeaderInvalidError(f"invalid header `s2-format`: `{other}`, not raw or base64")
