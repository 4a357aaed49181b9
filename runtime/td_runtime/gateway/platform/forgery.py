"""What a client may not claim in a message: that a webhook sent it."""

from __future__ import annotations

import json
from typing import Any, Final

from td_runtime.gateway.errors import RecordsInvalidError

_KEY: Final = "actionSource"
_FORGED: Final = "webhook"


def strip_forged_source(text: str) -> str:
    """The message without ``payload.actionSource`` where that says ``webhook``.

    Every other text comes back as it is, byte for byte, one that is no JSON too.

    Raises:
        RecordsInvalidError: It cannot be looked at.
    """
    message = _parse(text)

    return _dump(message) if _strip(message) else text


def strip_forged_record(body: bytes) -> bytes:
    """The same for a message as a record has it: within its envelope, as a text or as it is.

    Raises:
        RecordsInvalidError: It cannot be looked at.
    """
    record = _parse(body.decode("utf-8", "replace"))
    # A reader takes what is no envelope for the message itself.
    is_forged = _strip(record)
    data = record.get("data") if isinstance(record, dict) else None
    if isinstance(data, str):
        record["data"] = strip_forged_source(data)
        is_forged |= record["data"] != data
    else:
        is_forged |= _strip(data)

    if not is_forged:
        return body
    stripped = _dump(record).encode()
    if len(stripped) > len(body):  # numbers written out, beyond what a record may have
        raise RecordsInvalidError("the message cannot be sent without its source")

    return stripped


def _parse(text: str) -> Any:
    """Return a JSON text that may hold the mark; None for any other text."""
    # An escape spells the same key in other letters, and the agent's parser would not see the
    # difference.
    if _KEY not in text and "\\u" not in text:
        return None
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None
    except ValueError:  # others have parsers that read numbers of any length
        raise RecordsInvalidError("the message has a number of too many digits") from None
    except RecursionError:  # and such that go deeper
        raise RecordsInvalidError("the message is nested too deeply") from None


def _strip(message: Any) -> bool:
    """Take the mark out of a message; returns whether it was there."""
    payload: Any = message.get("payload") if isinstance(message, dict) else None
    if not isinstance(payload, dict) or payload.get(_KEY) != _FORGED:
        return False
    del payload[_KEY]

    return True


def _dump(message: Any) -> str:
    text = json.dumps(message, ensure_ascii=False, separators=(",", ":"))
    # Half of a surrogate pair can be escaped, but not encoded.
    return text.encode("utf-8", "replace").decode()
