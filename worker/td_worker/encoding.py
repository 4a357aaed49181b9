"""How values of task code become JSON: payloads, outputs and chunks alike."""

from typing import Any

import msgspec

__all__ = ["encode_json"]


def _encode_foreign(value: Any) -> Any:
    """Return a JSON-able stand-in for what msgspec does not know: pydantic models."""
    dump = getattr(value, "model_dump", None)
    if callable(dump):
        return dump(mode="json")
    raise TypeError(f"a value of type {type(value).__name__} cannot be written as JSON")


_encoder = msgspec.json.Encoder(enc_hook=_encode_foreign)


def encode_json(value: Any) -> bytes:
    """Return *value* as compact JSON text (UTF-8).

    Takes what JSON can say, and dataclasses, msgspec structs, pydantic models, datetimes, UUIDs,
    enums, decimals, sets and bytes (base64). NaN and infinities become null, as in JavaScript.

    Raises:
        TypeError: *value* holds something that JSON cannot say; the message names its type.
        ValueError: A string holds a lone surrogate, or a container holds itself.
    """
    try:
        return _encoder.encode(value)
    except RecursionError as error:
        raise ValueError("a container that holds itself cannot be written as JSON") from error
