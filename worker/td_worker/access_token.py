"""Public access tokens: what lets a browser read and write its own session, and nothing else."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from td_sharedcache.credential import Secret
from td_worker.encoding import encode_json

if TYPE_CHECKING:
    from jwt import PyJWS

__all__ = ["load_signer", "public_access_token", "session_scopes"]

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

    return Secret(load_signer().encode(encode_json(facts), secret_key, algorithm="HS256"))


@functools.cache
def load_signer() -> PyJWS:
    """Import what signs; that takes 100 ms and more, so each worker does it at its first token."""
    from jwt import PyJWS
    from jwt.algorithms import HMACAlgorithm

    class AnyLength(HMACAlgorithm):
        """HMAC without a warning of a short key: nobody here can choose another one.

        Not by a filter of warnings: those are the process's, and so task code's.
        """

        def check_key_length(self, key: bytes) -> None:
            """Find nothing wrong with it."""

    signer = PyJWS(algorithms=[])
    signer.register_algorithm("HS256", AnyLength(HMACAlgorithm.SHA256))

    return signer
