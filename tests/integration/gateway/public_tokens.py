"""Public access tokens as a client makes them that has the secret key."""

from __future__ import annotations

import time
import warnings
from typing import Any

import jwt


def sign(key: str, *scopes: str, life_s: float = 60.0, **claims: Any) -> str:
    """A token; ``claims`` replace those that a good one has, None leaves one out."""
    now = time.time()
    all_claims = {
        "iss": "https://id.trigger.dev",
        "aud": "https://api.trigger.dev",
        "sub": "env_x",
        "pub": True,
        "scopes": list(scopes),
        "iat": int(now),
        "exp": now + life_s,
        **claims,
    }
    with warnings.catch_warnings():  # the gateway of tests has a short key
        warnings.simplefilter("ignore")
        return jwt.encode({k: v for k, v in all_claims.items() if v is not None}, key)


def bearer(key: str, *scopes: str, **claims: Any) -> dict[str, str]:
    """The same as a request header."""
    return {"authorization": f"Bearer {sign(key, *scopes, **claims)}"}
