"""How values of task code become JSON: payloads, outputs and chunks alike."""

from functools import cache
from typing import Any

import msgspec

__all__ = ["encode_json", "to_plain"]


def to_plain(value: Any) -> Any:
    """Return a JSON-able stand-in for what msgspec does not know: pydantic models.

    Events of the clients of model providers (OpenAI's, Anthropic's and others made by the same
    generator) come out as they were on the wire: what the provider did not send is left out.

    Raises:
        TypeError: *value* is something else.
    """
    dump = getattr(value, "model_dump", None)
    if not callable(dump) or isinstance(value, type):
        raise TypeError(f"a value of type {type(value).__name__} cannot be written as JSON")
    kind: type = type(value)
    if _is_api_model(kind):
        return dump(mode="json", by_alias=True, exclude_unset=True)

    return dump(mode="json")


@cache
def _is_api_model(kind: type) -> bool:
    """Say whether models of *kind* are made from what a provider sent."""
    return any(
        base.__name__ == "BaseModel" and base.__module__.endswith("._models")
        for base in kind.__mro__
    )


_encoder = msgspec.json.Encoder(enc_hook=to_plain)


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
