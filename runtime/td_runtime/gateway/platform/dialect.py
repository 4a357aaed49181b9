"""How a request and its answer are written: JSON or Protocol Buffers, compressed or not."""

from typing import Final, Protocol

import msgspec

from td_runtime.gateway.errors import FormatUnsupportedError, HeaderInvalidError
from td_runtime.gateway.exchange import BODY_BYTES_MAX, JSON_TYPE, Exchange, Reply
from td_runtime.gateway.platform import protobuf
from td_runtime.gateway.platform.batches import Format, encode_batch
from td_runtime.gateway.platform.content_encoding import (
    BYTES_MIN,
    ENCODINGS,
    Encoding,
    accepted,
    compress,
    decompress,
)
from td_runtime.gateway.platform.reading import ReadResult
from td_runtime.gateway.platform.records import Batch, parse_append
from td_runtime.gateway.platform.s2s import CONTENT_TYPE as SESSION_TYPE
from td_runtime.gateway.platform.sequencer import AppendAck

PROTOBUF_TYPES: Final = ("application/protobuf", "application/x-protobuf")
EVENTS_TYPE: Final = "text/event-stream"
_ENCODINGS: Final[dict[str, Encoding]] = {encoding: encoding for encoding in ENCODINGS}


class Dialect(Protocol):
    """One way to write the messages of the data plane."""

    @property
    def content_type(self) -> str:
        """Its name in a header."""
        ...

    def parse_append(self, body: bytes) -> Batch:
        """Parse and check a batch; raises ``RequestError`` or ``msgspec.DecodeError``."""
        ...

    def encode_ack(self, ack: AppendAck) -> bytes:
        """The answer to an append."""
        ...

    def encode_batch(self, result: ReadResult) -> bytes:
        """The answer to a read."""
        ...


class Json:
    """JSON; bodies and headers are text, or base64."""

    content_type = JSON_TYPE

    def __init__(self, format_: Format) -> None:
        self._format: Format = format_

    def parse_append(self, body: bytes) -> Batch:
        """See ``Dialect``."""
        return parse_append(body, is_base64=self._format == "base64")

    def encode_ack(self, ack: AppendAck) -> bytes:
        """See ``Dialect``."""
        return msgspec.json.encode(ack)

    def encode_batch(self, result: ReadResult) -> bytes:
        """See ``Dialect``."""
        return encode_batch(result, self._format)


class Protobuf:
    """Protocol Buffers, under either name."""

    def __init__(self, content_type: str) -> None:
        self.content_type = content_type

    def parse_append(self, body: bytes) -> Batch:
        """See ``Dialect``."""
        return protobuf.parse_append(body)

    def encode_ack(self, ack: AppendAck) -> bytes:
        """See ``Dialect``."""
        return protobuf.encode_ack(ack)

    def encode_batch(self, result: ReadResult) -> bytes:
        """See ``Dialect``."""
        return protobuf.encode_batch(result)


def asks_for_session(exchange: Exchange) -> bool:
    """Whether the request opens an s2s session."""
    return _type_of(exchange) == SESSION_TYPE


def asks_for_events(exchange: Exchange) -> bool:
    """Whether the answer is to be server-sent events."""
    return EVENTS_TYPE in exchange.headers.get("accept", "")


def spoken(exchange: Exchange) -> Dialect:
    """What the request's body is written in.

    Raises:
        FormatUnsupportedError: Something else.
    """
    content_type = _type_of(exchange)
    if content_type == JSON_TYPE:
        return Json(parse_format(exchange))
    if content_type in PROTOBUF_TYPES:
        return Protobuf(content_type)
    raise FormatUnsupportedError(
        f"content type `{content_type}` is not supported: send `{JSON_TYPE}`,"
        f" `{PROTOBUF_TYPES[0]}` or `{SESSION_TYPE}`"
    )


def wanted(exchange: Exchange) -> Dialect:
    """What the answer is to be written in: the first type that is accepted decides."""
    first = exchange.headers.get("accept", "").partition(",")[0].partition(";")[0].strip().lower()
    return Protobuf(first) if first in PROTOBUF_TYPES else Json(parse_format(exchange))


async def read_body(exchange: Exchange) -> bytes:
    """The whole body, decompressed.

    Raises:
        FormatUnsupportedError: It is compressed in a way that is not known.
        RequestError: It is too large, or does not decompress.
    """
    name = exchange.headers.get("content-encoding", "identity").strip().lower()
    if name == "identity":
        return await exchange.read_body()
    encoding = _ENCODINGS.get(name)
    if encoding is None:
        raise FormatUnsupportedError(f"content encoding `{name}` is not supported")

    return decompress(await exchange.read_body(), encoding, limit=BODY_BYTES_MAX)


def reply_with(exchange: Exchange, content_type: str, body: bytes) -> Reply:
    """The answer, compressed if that was asked for and it is large."""
    encoding = accepted(exchange.headers.get("accept-encoding"))
    if encoding is None or len(body) < BYTES_MIN:
        return Reply(200, body, content_type)
    headers = (("content-encoding", encoding), ("vary", "accept-encoding"))

    return Reply(200, compress(body, encoding), content_type, headers)


def parse_format(exchange: Exchange) -> Format:
    """How JSON writes bytes.

    Raises:
        HeaderInvalidError: Neither of the two ways there are.
    """
    match exchange.headers.get("s2-format", "raw").lower():
        case "raw":
            return "raw"
        case "base64":
            return "base64"
        case other:
            raise HeaderInvalidError(f"invalid header `s2-format`: `{other}`, not raw or base64")


def _type_of(exchange: Exchange) -> str:
    content_type: str = exchange.headers.get("content-type", "")
    return content_type.partition(";")[0].strip().lower()
