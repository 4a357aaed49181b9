from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from td_worker.errors import ChatChunkTooLargeError, ChunkNotEncodableError
from td_worker.streams.envelope import (
    MAX_ENVELOPE,
    Envelope,
    chunk_type,
    decode_envelope,
    encode_envelope,
    new_nonce,
)

TWO_MB = "x" * 2_000_000

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


def test_envelope_is_compact_json_with_data_before_id():
    """The bytes are those of the official SDK: no blanks, `data` first, `id` second."""
    assert encode_envelope({"a": [1, None, "é"]}, "n-0") == (
        '{"data":{"a":[1,null,"é"]},"id":"n-0"}'.encode()
    )


def test_none_is_written_as_null():
    """None becomes null, so that a reader gets a chunk and not an absent one."""
    assert encode_envelope(None, "n-0") == b'{"data":null,"id":"n-0"}'


@pytest.mark.conformance("EN1")
def test_an_oversize_dict_names_its_type():
    """EN1: a 2 MB chunk is refused with its size, the cap, its type and advice."""
    with pytest.raises(ChatChunkTooLargeError) as caught:
        encode_envelope({"type": "tool-output-available", "output": TWO_MB}, "n-0")

    error = caught.value
    assert error.chunk_type == "tool-output-available"
    assert error.chunk_size > 1_000_000
    assert error.max_size == 1_047_552
    assert str(error).startswith('chat.agent chunk of type "tool-output-available" is ')
    assert "only an id or url" in str(error)
    assert "https://trigger.dev/docs/ai-chat/patterns/large-payloads" in str(error)


@pytest.mark.conformance("EN2")
def test_an_oversize_chunk_without_type_names_its_kind():
    """EN2: `kind` stands in for a missing `type`."""
    with pytest.raises(ChatChunkTooLargeError) as caught:
        encode_envelope({"kind": "action", "payload": TWO_MB}, "n-0")

    assert caught.value.chunk_type == "action"


@pytest.mark.conformance("EN3")
def test_an_oversize_string_has_no_type():
    """EN3: a bare string has no type, and the message names none."""
    with pytest.raises(ChatChunkTooLargeError) as caught:
        encode_envelope(TWO_MB, "n-0")

    assert caught.value.chunk_type is None
    assert str(caught.value).startswith("chat.agent chunk is ")


@pytest.mark.conformance("EN4")
def test_a_small_chunk_comes_back_with_its_id():
    """EN4: a small chunk's body parses to the chunk and an id of the alphabet readers expect."""
    envelope_id = f"{new_nonce()}-17"
    found = json.loads(encode_envelope({"hello": "world"}, envelope_id))

    assert found == {"data": {"hello": "world"}, "id": envelope_id}
    assert re.fullmatch(r"[A-Za-z0-9_-]{12}-17", envelope_id)


@pytest.mark.parametrize(
    ("error", "expected"),
    [(ChatChunkTooLargeError(2, 1), True), (ValueError("no"), False), ("text", False)],
)
@pytest.mark.conformance("EN5", "EN6")
def test_the_error_class_tells_an_oversize_chunk_from_anything_else(error, expected):
    """EN5, EN6: `isinstance` is the guard, and only an oversize chunk passes it."""
    assert isinstance(error, ChatChunkTooLargeError) is expected


def test_the_cap_counts_utf8_bytes_of_the_whole_envelope():
    """An envelope of exactly the cap passes, one more byte fails, and é counts twice."""
    room = MAX_ENVELOPE - len(b'{"data":"","id":"n-0"}')
    assert len(encode_envelope("x" * room, "n-0")) == MAX_ENVELOPE
    with pytest.raises(ChatChunkTooLargeError) as caught:
        encode_envelope("é" + "x" * (room - 1), "n-0")
    assert caught.value.chunk_size == MAX_ENVELOPE + 1


@settings(deadline=None)
@given(json_values)
def test_whatever_json_can_say_comes_back(chunk):
    """Any JSON value survives, with lone surrogates and integers beyond 64 bits."""
    found = decode_envelope(encode_envelope(chunk, "n-0").decode())

    assert found is not None
    assert found.data == chunk
    assert found.id == "n-0"


def test_half_an_emoji_travels_as_its_escape():
    """A token stream may cut a surrogate pair in two; both halves arrive as JavaScript has them."""
    body = encode_envelope("\ud83d", "n-0")

    assert body == b'{"data":"\\ud83d","id":"n-0"}'
    assert _decoded(body.decode()).data == "\ud83d"


def test_models_are_written_as_their_plain_data():
    """Dataclasses, msgspec structs and pydantic-like models need no conversion by the caller."""

    @dataclass
    class Point:
        x: int

    class Named(msgspec.Struct):
        name: str

    class Model:
        def model_dump(self, *, mode: str) -> dict[str, str]:
            return {"mode": mode}

    found = _decoded(encode_envelope([Point(1), Named("n"), Model()], "n-0").decode())

    assert found.data == [{"x": 1}, {"name": "n"}, {"mode": "json"}]


@pytest.mark.parametrize("chunk", [object(), {"f": print}, {(1, 2): 3}])
def test_what_json_cannot_say_is_refused_by_type(chunk):
    """A chunk that is no data is a TypeError of ours that names its type."""
    with pytest.raises(ChunkNotEncodableError, match=type(chunk).__name__) as caught:
        encode_envelope(chunk, "n-0")

    assert isinstance(caught.value, TypeError)


def test_a_chunk_that_contains_itself_is_refused():
    """Endless data ends in an error, not in a dead interpreter."""
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(ChunkNotEncodableError):
        encode_envelope(loop, "n-0")


@pytest.mark.parametrize("body", ["not json", "[1]", "7", '"text"', "", '{"data":' + "[" * 100_000])
def test_a_body_without_envelope_is_none(body):
    """Foreign text, JSON that is no object, and what nests too deep hold no envelope."""
    assert decode_envelope(body) is None


def test_an_envelope_without_data_has_none():
    """A key that JavaScript left out because it was undefined stays absent."""
    assert _decoded('{"id":"abc"}').data is msgspec.UNSET


def test_nonces_do_not_repeat():
    """Two writers never share envelope ids."""
    assert len({new_nonce() for _ in range(1000)}) == 1000


@pytest.mark.parametrize(
    ("chunk", "expected"),
    [({"type": 1, "kind": "k"}, "k"), ({}, None), (None, None), (Exception(), None)],
)
def test_only_text_names_a_chunk(chunk, expected):
    """A `type` that is no string does not count."""
    assert chunk_type(chunk) == expected


def _decoded(body: str) -> Envelope:
    found = decode_envelope(body)
    assert found is not None
    return found
