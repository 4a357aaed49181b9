"""Public access tokens: what lets a browser read and write its own session, and nothing else."""

from __future__ import annotations

import base64
import hmac
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

from td_sharedcache.credential import Secret
from td_worker.encoding import encode_json

__all__ = ["public_access_token", "session_scopes"]

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

    # By hand: signing needs no library, whose import would cost each worker 100 ms.
    signed = f"{_segment({'alg': 'HS256', 'typ': 'JWT'})}.{_segment(facts)}"
    signature = hmac.digest(secret_key.encode(), signed.encode(), "sha256")

    return Secret(f"{signed}.{_base64(signature)}")


def _segment(facts: Mapping[str, Any]) -> str:
    return _base64(encode_json(facts))


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
