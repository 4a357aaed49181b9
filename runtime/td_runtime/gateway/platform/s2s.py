"""Frames of an s2s session: messages on one long HTTP body, either way.

::

    3 bytes   length of what follows, big-endian
    1 byte    flag: bit 7 terminal, bits 6-5 compression (0 none, 1 zstd, 2 gzip), bit 4 advice
              to reconnect, the others reserved
    n bytes   body; a terminal frame's is a 2-byte status and the error's JSON
"""

from collections.abc import Iterator
from typing import Final

from td_runtime.gateway.errors import BodyTooLargeError, EncodingInvalidError, FrameInvalidError
from td_runtime.gateway.exchange import Reply
from td_runtime.gateway.platform.content_encoding import (
    BYTES_MIN,
    Encoding,
    compress,
    decompress,
)

CONTENT_TYPE: Final = "s2s/proto"
FRAME_BYTES_MAX: Final = 2 * 1024 * 1024  # flag and body, compressed or not
_HEAD_BYTES: Final = 3
_TERMINAL: Final = 0x80
_COMPRESSION: Final = 0x60
_FLAGS: Final[dict[Encoding, int]] = {"zstd": 0x20, "gzip": 0x40}
_ENCODINGS: Final[dict[int, Encoding]] = {flag: encoding for encoding, flag in _FLAGS.items()}


class FrameReader:
    """Cuts what a client sends into messages, however it was cut on its way."""

    def __init__(self) -> None:
        self._rest = b""

    @property
    def is_between(self) -> bool:
        """Whether everything that came belonged to a whole frame."""
        return not self._rest

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The bodies of the frames that are whole by now, decompressed.

        Raises:
            FrameInvalidError: It is no frame, is too large, or cannot be decompressed. What comes
                after it means nothing.
        """
        data, position = self._rest + data if self._rest else data, 0
        self._rest = b""
        while len(data) - position >= _HEAD_BYTES:
            start = position + _HEAD_BYTES
            length = int.from_bytes(data[position:start], "big")
            _check_length(length)
            if len(data) < start + length:
                break
            position = start + length
            yield _open(data[start], data[start + 1 : position])
        self._rest = data[position:]


def encode_frame(body: bytes, encoding: Encoding | None = None) -> bytes:
    """A message as a frame, compressed if that is allowed and it is large."""
    flag = 0
    if encoding is not None and len(body) >= BYTES_MIN:
        flag, body = _FLAGS[encoding], compress(body, encoding)

    return b"%b%c%b" % ((len(body) + 1).to_bytes(_HEAD_BYTES, "big"), flag, body)


def encode_terminal(reply: Reply) -> bytes:
    """The frame that ends a session with what a single request would have been answered."""
    body = reply.status.to_bytes(2, "big") + reply.body
    return b"%b%c%b" % ((len(body) + 1).to_bytes(_HEAD_BYTES, "big"), _TERMINAL, body)


def _check_length(length: int) -> None:
    if length < 1:
        raise FrameInvalidError("a frame has no flag")
    if length > FRAME_BYTES_MAX:
        raise FrameInvalidError(f"a frame has {length} bytes; the limit is {FRAME_BYTES_MAX}")


def _open(flag: int, body: bytes) -> bytes:
    if flag & _TERMINAL:
        raise FrameInvalidError("a client sends no terminal frames")
    compression = flag & _COMPRESSION
    if not compression:
        return body
    encoding = _ENCODINGS.get(compression)
    if encoding is None:
        raise FrameInvalidError("a frame is compressed in a way that is not known")
    try:
        return decompress(body, encoding, limit=FRAME_BYTES_MAX)
    except (BodyTooLargeError, EncodingInvalidError) as error:
        raise FrameInvalidError(f"a frame cannot be decompressed: {error}") from error
