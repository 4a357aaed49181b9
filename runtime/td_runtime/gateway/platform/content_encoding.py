"""Compression of bodies and frames: gzip and zstd, both with a bound on what comes out."""

import re
import sys
import zlib
from typing import Final, Literal

from td_runtime.gateway.errors import BodyTooLargeError, EncodingInvalidError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Encoding = Literal["zstd", "gzip"]
ENCODINGS: Final[tuple[Encoding, ...]] = ("zstd", "gzip")  # the better one first
BYTES_MIN: Final = 1024  # below, compressing costs more than it saves
_GZIP: Final = 16 + zlib.MAX_WBITS
_GZIP_LEVEL: Final = 1


def compress(data: bytes, encoding: Encoding) -> bytes:
    """Compress a whole body."""
    if encoding == "zstd":
        return zstd.compress(data)

    return zlib.compress(data, _GZIP_LEVEL, _GZIP)


def decompress(data: bytes, encoding: Encoding, *, limit: int) -> bytes:
    """Decompress a whole body, which is made of one frame or member.

    Raises:
        BodyTooLargeError: More than ``limit`` bytes would come out; it stops there.
        EncodingInvalidError: It is not compressed so, or is not complete.
    """
    decoder = zstd.ZstdDecompressor() if encoding == "zstd" else zlib.decompressobj(_GZIP)
    try:
        plain = decoder.decompress(data, limit + 1)
    except (zstd.ZstdError, zlib.error) as error:
        raise EncodingInvalidError(f"not {encoding}: {error}") from error
    if len(plain) > limit:
        raise BodyTooLargeError(limit=limit)
    if not decoder.eof or decoder.unused_data:
        raise EncodingInvalidError(f"not one whole body of {encoding}")

    return plain


def accepted(header: str | None) -> Encoding | None:
    """The best encoding that an ``accept-encoding`` allows, None for no compression."""
    allowed = {
        name.strip().lower()
        for name, _, weight in (part.partition(";") for part in (header or "").split(","))
        if not re.fullmatch(r"\s*q=0(\.0*)?\s*", weight)
    }
    return next((encoding for encoding in ENCODINGS if encoding in allowed), None)
