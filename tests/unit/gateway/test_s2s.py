"""Frames, and what they are compressed with."""

from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from td_runtime.gateway.errors import (
    BodyTooLargeError,
    EncodingInvalidError,
    FrameInvalidError,
)
from td_runtime.gateway.exchange import Reply
from td_runtime.gateway.platform.content_encoding import Encoding, accepted, compress, decompress
from td_runtime.gateway.platform.s2s import FrameReader, encode_frame, encode_terminal


@given(st.lists(st.binary(max_size=40), max_size=8), st.lists(st.integers(1, 30), max_size=30))
def test_cuts_do_not_matter(bodies: list[bytes], sizes: list[int]) -> None:
    """However frames are cut on their way, the same messages come out."""
    data = b"".join(map(encode_frame, bodies))
    reader, found = FrameReader(), []
    for size in [*sizes, len(data)]:
        found += list(reader.feed(data[:size]))
        data = data[size:]

    assert found == bodies
    assert reader.is_between


def test_half_a_frame_is_not_between() -> None:
    """The reader knows that something is missing, even if only the length has come."""
    reader = FrameReader()

    assert list(reader.feed(encode_frame(b"x") + b"\0")) == [b"x"]
    assert not reader.is_between


@pytest.mark.parametrize("encoding", ["zstd", "gzip"])
def test_only_large_messages_are_compressed(encoding: Encoding) -> None:
    """Small ones go as they are; both come back the same."""
    large = b"many times " * 500

    small_frame, large_frame = encode_frame(b"x", encoding), encode_frame(large, encoding)

    assert (small_frame[3], large_frame[3]) == (0, {"zstd": 0x20, "gzip": 0x40}[encoding])
    assert len(large_frame) < 200
    assert list(FrameReader().feed(small_frame + large_frame)) == [b"x", large]


def test_a_frame_that_swells_is_refused() -> None:
    """A frame of a few KiB that would become 3 MiB is refused, without making them."""
    frame = encode_frame(bytes(3 * 1024 * 1024), "gzip")

    with pytest.raises(FrameInvalidError, match="2097152"):
        list(FrameReader().feed(frame))


def test_a_terminal_frame_holds_the_answer() -> None:
    """Its flag, its status in two bytes, and the document."""
    assert encode_terminal(Reply(412, b"{}")) == b"\0\0\x05\x80\x01\x9c{}"


@pytest.mark.parametrize("encoding", ["zstd", "gzip"])
def test_decompression_is_bounded_and_exact(encoding: Encoding) -> None:
    """The limit is held to the byte; a body cut short or followed by more is refused."""
    body = compress(bytes(1000), encoding)

    assert decompress(body, encoding, limit=1000) == bytes(1000)
    with pytest.raises(BodyTooLargeError):
        decompress(body, encoding, limit=999)
    for bad in (body[:-1], body + b"x", b"", b"nothing of the kind"):
        with pytest.raises(EncodingInvalidError):
            decompress(bad, encoding, limit=1000)


def test_gzip_is_what_others_call_gzip() -> None:
    """Both ways, with the standard library's own."""
    assert gzip.decompress(compress(b"x" * 99, "gzip")) == b"x" * 99
    assert decompress(gzip.compress(b"y"), "gzip", limit=1) == b"y"
    with pytest.raises(EncodingInvalidError):
        decompress(zlib.compress(b"y"), "gzip", limit=1)


@pytest.mark.parametrize(
    ("header", "encoding"),
    [
        (None, None),
        ("identity", None),
        ("gzip, deflate", "gzip"),
        ("gzip;q=1.0, zstd;q=0.5", "zstd"),
        ("ZSTD", "zstd"),
        ("gzip;q=0, br", None),
    ],
)
def test_the_best_that_is_accepted(header: str | None, encoding: str | None) -> None:
    """Of what a client accepts the better one is taken; what it weighs 0 is not."""
    assert accepted(header) == encoding
