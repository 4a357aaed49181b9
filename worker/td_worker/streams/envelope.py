"""
What one record holds: the compact JSON object `{"data": <chunk>, "id": "<writer nonce>-<n>"}`.

The official SDK writes and reads the same envelope; the id is what hides a record that was sent
twice because the first answer got lost.
"""

from __future__ import annotations

import json
import secrets
from typing import Any, Final

import msgspec

from td_worker.encoding import to_plain
from td_worker.errors import ChatChunkTooLargeError, ChunkNotEncodableError

MAX_ENVELOPE: Final = 1_047_552
"""Bytes of UTF-8 one envelope may have (1 MiB less 1 KiB): the official SDK's cap."""

_encoder: Final = msgspec.json.Encoder(enc_hook=to_plain)


class Envelope(msgspec.Struct):
    """A decoded envelope; `UNSET` stands for an absent key, as JavaScript's `undefined`."""

    data: Any = msgspec.UNSET
    id: Any = msgspec.UNSET


_decoder: Final = msgspec.json.Decoder(Envelope)


def new_nonce() -> str:
    """Return 12 random characters of `[A-Za-z0-9_-]`, one writer's part of its envelope ids."""
    return secrets.token_urlsafe(9)


def encode_envelope(chunk: object, envelope_id: str) -> bytes:
    """
    Return the envelope of `chunk` as UTF-8 JSON.

    Raises:
        ChatChunkTooLargeError: It is over `MAX_ENVELOPE`.
        ChunkNotEncodableError: JSON cannot express the chunk.
    """
    envelope = {"data": chunk, "id": envelope_id}
    try:
        body = _encoder.encode(envelope)
    except (UnicodeEncodeError, OverflowError):
        body = _encode_oddities(envelope)
    except (TypeError, ValueError, RecursionError) as error:
        raise _not_encodable(chunk, error) from error
    if len(body) > MAX_ENVELOPE:
        raise ChatChunkTooLargeError(len(body), MAX_ENVELOPE, chunk_type(chunk))

    return body


def decode_envelope(body: str) -> Envelope | None:
    """Return the envelope in a record's body, None when it holds none."""
    try:
        return _decoder.decode(body)
    except msgspec.ValidationError:
        return None
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return _decode_oddities(body)


def chunk_type(chunk: object) -> str | None:
    """Return what a chunk calls itself: its `type`, else its `kind`, when that is a string."""
    for name in ("type", "kind"):
        value = chunk.get(name) if isinstance(chunk, dict) else getattr(chunk, name, None)
        if isinstance(value, str):
            return value

    return None


def _encode_oddities(envelope: dict[str, object]) -> bytes:
    # Token streams cut emoji in half: a lone surrogate, which UTF-8 cannot hold, must travel as
    # its \uXXXX escape, as JSON.stringify has it. Integers over 64 bits come this way too.
    try:
        plain = msgspec.to_builtins(envelope, enc_hook=to_plain)
        text = json.dumps(plain, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise _not_encodable(envelope["data"], error) from error

    return text.encode()


def _decode_oddities(body: str) -> Envelope | None:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None

    return Envelope(data=found.get("data", msgspec.UNSET), id=found.get("id", msgspec.UNSET))


def _not_encodable(chunk: object, error: Exception) -> ChunkNotEncodableError:
    return ChunkNotEncodableError(
        f"a chunk of type {type(chunk).__name__} cannot be written as JSON: {error}"
    )
