"""Public access tokens: what lets a browser read and write its own session, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from functools import cache
from types import ModuleType
from typing import Any, Final

from td_sharedcache.credential import Secret

__all__ = ["public_access_token", "session_scopes"]

_ALGORITHM: Final = "HS256"
_ISSUER: Final = "https://id.trigger.dev"
_AUDIENCE: Final = "https://api.trigger.dev"


def session_scopes(session_id: str) -> list[str]:
    """Return what the client of a session may do: read it, and write to its `in`."""
    return [f"read:sessions:{session_id}", f"write:sessions:{session_id}"]


def public_access_token(
    secret_key: str, scopes: Iterable[str], ttl: float, *, claims: Mapping[str, Any]
) -> Secret:
    """
    Return a token, signed with the secret key, that is good for `scopes` alone.

    Args:
        secret_key: Whose environment it is for.
        scopes: For example `read:sessions:chat-17`.
        ttl: Seconds until it expires.
        claims: What the control plane wants in it besides, such as `sub`.
    """
    now = int(time.time())
    facts = {
        "pub": True,
        **claims,
        "scopes": list(scopes),
        "iss": _ISSUER,
        "aud": _AUDIENCE,
        "iat": now,
        "exp": now + int(ttl),
    }

    return Secret(_jwt().encode(facts, secret_key, algorithm=_ALGORITHM))


@cache
def _jwt() -> ModuleType:
    """Return the JWT library, which takes long to import, and which few workers need."""
    import warnings

    import jwt

    # The key is whatever the operator chose; there is nobody here to read a warning about it.
    warnings.filterwarnings("ignore", category=jwt.warnings.InsecureKeyLengthWarning)

    return jwt
