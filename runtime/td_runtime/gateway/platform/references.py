"""Payloads by reference: what a client uploaded stands in for what it says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from td_runtime.gateway.exchange import BODY_BYTES_MAX, json_reply
from td_runtime.gateway.platform.answers import RefusalError
from td_runtime.gateway.platform.packets import JSON, STORED
from td_runtime.gateway.platform.uploads import Upload, Uploads

if TYPE_CHECKING:
    from collections.abc import Sequence

    from td_runtime.gateway.platform.run_bodies import BatchItem, TriggerBody

_PREFIX: Final = "uploads/"


async def resolve(uploads: Uploads, requests: Sequence[TriggerBody | BatchItem]) -> None:
    """Put the content of uploads in the place of what names them.

    Args:
        uploads: Where they are.
        requests: Requests for runs that go to the supervisor together.

    Raises:
        RefusalError: 422, there is no such upload; 413, together they are larger than a request
            may be.
    """
    size = 0
    for request in requests:
        options = request.options
        if options is None or options.payload_type != STORED:
            continue
        upload = await _load(uploads, request.payload)
        size += len(upload.text)
        if size > BODY_BYTES_MAX:
            raise RefusalError(json_reply(413, {"error": "The payloads have more than 16 MiB"}))
        request.payload, options.payload_type = _open(upload), upload.encoding


def make_reference(upload_id: str) -> str:
    """Return what a client sends in place of a payload."""
    return _PREFIX + upload_id


async def _load(uploads: Uploads, reference: object) -> Upload:
    if isinstance(reference, str) and reference.startswith(_PREFIX):
        upload = await uploads.load(reference.removeprefix(_PREFIX))
        if upload is not None:
            return upload

    raise RefusalError(
        json_reply(
            422,
            {
                "error": f"There is no uploaded payload {str(reference)[:80]!r} here, or not any "
                "more: trigger again with the payload itself"
            },
        )
    )


def _open(upload: Upload) -> object:
    """Return a packet's data as a body has them: text, but for plain JSON."""
    if upload.encoding != JSON:
        return upload.text
    try:
        return msgspec.json.decode(upload.text)
    except (msgspec.DecodeError, RecursionError):
        raise RefusalError(json_reply(400, {"error": "The uploaded payload is no JSON"})) from None
