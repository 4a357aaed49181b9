"""Public access tokens that a worker signs."""

from __future__ import annotations

import time

import jwt

from td_worker.access_token import public_access_token, session_scopes

KEY = "tr_dev_" + "k" * 32


def test_a_token_is_what_a_jwt_library_reads():
    """A signed token says what it is good for, until when, and what the control plane wants."""
    scopes = session_scopes("chat 1")
    token = public_access_token(KEY, scopes, 60, claims={"sub": "env_1", "pub": True})

    claims = jwt.decode(
        str(token),
        KEY,
        ["HS256"],
        audience="https://api.trigger.dev",
        issuer="https://id.trigger.dev",
    )

    assert claims["scopes"] == ["read:sessions:chat 1", "write:sessions:chat 1"]
    assert (claims["sub"], claims["pub"]) == ("env_1", True)
    assert 50 < claims["exp"] - time.time() <= 60
    assert repr(token) == "'***'"
