"""Defence in depth: what must never be read in a line is masked here, whoever logged it.

Two nets. Values under a key that names a secret are replaced before rendering; strings that were
registered as secrets, and whatever follows "Bearer", are replaced in the rendered line.
"""

from __future__ import annotations

import functools
import re
from typing import Final

__all__ = ["MASK", "is_sensitive", "redact", "register_secret"]

MASK: Final = "***"

_KEYS: Final = frozenset(
    {
        "access_token",
        "api_key",
        "authorization",
        "cookie",
        "password",
        "private_key",
        "proxy_authorization",
        "refresh_token",
        "secret",
        "secret_key",
        "set_cookie",
        "token",
        "x_api_key",
        "x_s2_access_token",
    }
)
_BEARER: Final = re.compile(rb"([Bb]earer )[A-Za-z0-9._~+/=-]{8,}")
#: A shorter string is no secret, and masking it would make holes in every line.
_MIN_LENGTH: Final = 8
#: Oldest first. A process that mints for ever must not search for every token it ever had.
_MAX_SECRETS: Final = 256

# Replaced as a whole, never changed: a thread that is rendering sees the old one or the new one,
# and no lock exists that a fork could leave locked.
_secrets: tuple[bytes, ...] = ()


def register_secret(value: str) -> None:
    """Mask *value* in every line this process renders from now on.

    The newest 256 values are remembered; strings under 8 characters are ignored.
    """
    global _secrets
    raw = value.encode("utf-8", "replace")
    if len(raw) < _MIN_LENGTH or raw in _secrets:
        return

    _secrets = (*_secrets, raw)[-_MAX_SECRETS:]


@functools.lru_cache(maxsize=4096)
def is_sensitive(key: str) -> bool:
    """Whether a field of this name holds a secret: spelled in any case, with _ or -."""
    return key.lower().replace("-", "_") in _KEYS


def redact(line: bytes) -> bytes:
    """The line without registered secrets and bearer tokens."""
    for secret in _secrets:
        if secret in line:
            line = line.replace(secret, MASK.encode())
    if b"earer " in line:
        line = _BEARER.sub(rb"\1" + MASK.encode(), line)

    return line
