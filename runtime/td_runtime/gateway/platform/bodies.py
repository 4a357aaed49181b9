"""Request bodies of the control plane: bounded, present, and of a known shape."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from td_runtime.gateway.errors import BodyTooLargeError
from td_runtime.gateway.exchange import Exchange, json_reply
from td_runtime.gateway.platform import answers
from td_runtime.gateway.platform.answers import RefusalError

T = TypeVar("T")


async def read_bytes(exchange: Exchange, *, limit: int) -> bytes:
    """The body.

    Raises:
        RefusalError: 413, it is longer than ``limit`` bytes, or does not say how long it is.
    """
    # Upstream checks the announced length alone, and refuses a request without one.
    if exchange.content_length is None:
        raise RefusalError(answers.BODY_TOO_LARGE)
    try:
        return await exchange.read_body(limit=limit)
    except BodyTooLargeError:
        raise RefusalError(answers.BODY_TOO_LARGE) from None


async def read_json(exchange: Exchange, type_: type[T], *, limit: int) -> T:
    """The body as a document.

    Raises:
        RefusalError: 413 as above; 400, it is empty, no JSON, or does not fit.
    """
    body = await read_bytes(exchange, limit=limit)
    if not body:
        raise RefusalError(answers.BODY_EMPTY)
    try:
        return msgspec.json.decode(body, type=type_)
    except msgspec.ValidationError as error:
        raise RefusalError(json_reply(400, {"error": f"Validation error: {error}"})) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise RefusalError(answers.BODY_NOT_JSON) from None
