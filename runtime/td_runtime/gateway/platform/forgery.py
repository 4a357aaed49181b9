"""What a client may not claim in a message: that a webhook sent it."""

from __future__ import annotations

import json
from typing import Any, Final

_KEY: Final = "actionSource"
_FORGED: Final = "webhook"


def strip_forged_source(text: str) -> str:
    """The message without ``payload.actionSource`` where that says ``webhook``.

    Every other text comes back as it is, byte for byte, one that is no JSON too.
    """
    # An escape spells the same key in other letters, and the agent's parser would not see the
    # difference.
    if _KEY not in text and "\\u" not in text:
        return text
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        return text
    payload: Any = message.get("payload") if isinstance(message, dict) else None
    if not isinstance(payload, dict) or payload.get(_KEY) != _FORGED:
        return text
    del payload[_KEY]

    return json.dumps(message, ensure_ascii=False, separators=(",", ":"))
