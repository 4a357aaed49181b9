"""What a read session sends: server-sent events, or frames."""

import time
from typing import Final, Protocol

import msgspec

from td_runtime.gateway.errors import DrainingError, GatewayError
from td_runtime.gateway.platform import protobuf, s2s
from td_runtime.gateway.platform.batches import Format, encode_batch
from td_runtime.gateway.platform.content_encoding import Encoding
from td_runtime.gateway.platform.reading import ReadResult
from td_runtime.gateway.platform.records import StreamPosition
from td_runtime.gateway.platform.refusals import reply_to

Headers = tuple[tuple[str, str], ...]
EVENT_HEADERS: Final[Headers] = (
    ("content-type", "text/event-stream"),
    ("cache-control", "no-cache, no-transform"),
    ("x-accel-buffering", "no"),
)
FRAME_HEADERS: Final[Headers] = (("content-type", s2s.CONTENT_TYPE),)


class Wire(Protocol):
    """How one read session is written."""

    @property
    def headers(self) -> Headers:
        """What the answer's head says."""
        ...

    def batch(self, result: ReadResult, *, last: int, count: int, size: int) -> bytes:
        """Records; sent so far, with these: up to ``last``, ``count`` of them, metered ``size``."""
        ...

    def ping(self, tail: StreamPosition) -> bytes:
        """Sent while there is nothing to send."""
        ...

    def end(self) -> bytes:
        """Sent when the session ends by itself."""
        ...

    def failure(self, error: GatewayError) -> bytes:
        """Sent when it ends by an error, the gateway's own end included."""
        ...


class Ping(msgspec.Struct, frozen=True):
    """The event that says nothing but where the tail is."""

    timestamp: int
    tail: StreamPosition


_encode = msgspec.json.Encoder().encode


class Events:
    """Server-sent events. The gateway's own end breaks them off: the client comes back."""

    headers = EVENT_HEADERS

    def __init__(self, format_: Format) -> None:
        self._format: Format = format_

    def batch(self, result: ReadResult, *, last: int, count: int, size: int) -> bytes:
        """See ``Wire``."""
        data = encode_batch(result, self._format)
        return b"event: batch\nid: %d,%d,%d\ndata: %b\n\n" % (last, count, size, data)

    def ping(self, tail: StreamPosition) -> bytes:
        """See ``Wire``."""
        return b"event: ping\ndata: %b\n\n" % _encode(Ping(int(time.time() * 1000), tail))

    def end(self) -> bytes:
        """See ``Wire``."""
        return b"data: [DONE]\n\n"

    def failure(self, error: GatewayError) -> bytes:
        """See ``Wire``."""
        if isinstance(error, DrainingError):
            return b""

        return b"event: error\ndata: %b\n\n" % reply_to(error).body


class Frames:
    """Frames of Protocol Buffers."""

    headers = FRAME_HEADERS

    def __init__(self, encoding: Encoding | None) -> None:
        self._encoding: Encoding | None = encoding

    def batch(self, result: ReadResult, *, last: int, count: int, size: int) -> bytes:  # noqa: ARG002  a client counts frames itself
        """See ``Wire``."""
        return s2s.encode_frame(protobuf.encode_batch(result), self._encoding)

    def ping(self, tail: StreamPosition) -> bytes:
        """See ``Wire``."""
        return s2s.encode_frame(protobuf.encode_batch(ReadResult([], tail)))

    def end(self) -> bytes:
        """See ``Wire``."""
        return b""

    def failure(self, error: GatewayError) -> bytes:
        """See ``Wire``."""
        return s2s.encode_terminal(reply_to(error))
