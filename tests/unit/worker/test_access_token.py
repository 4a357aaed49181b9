"""Public access tokens that a worker signs."""

from __future__ import annotations

import subprocess
import sys
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

    assert jwt.get_unverified_header(str(token)) == {"alg": "HS256", "typ": "JWT"}
    assert claims["scopes"] == ["read:sessions:chat 1", "write:sessions:chat 1"]
    assert (claims["sub"], claims["pub"]) == ("env_1", True)
    assert 50 < claims["exp"] - time.time() <= 60
    assert repr(token) == "'***'"


def test_only_task_code_is_warned_of_short_keys():
    """Nothing is said of the secret key; what a task signs by itself is its own affair."""
    script = (
        "import jwt, td_worker.access_token as it\n"
        "it.public_access_token('tr_dev_short', [], 60, claims={})\n"
        "print('of a task:')\n"
        "jwt.encode({}, 'short', 'HS256')\n"
    )
    command = [sys.executable, "-W", "error", "-c", script]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)

    assert ended.stdout == "of a task:\n"
    assert "InsecureKeyLengthWarning" in ended.stderr


def test_a_worker_starts_without_the_library():
    """Its import takes longer than all the rest of a worker's boot."""
    script = "import sys, td_worker.runtime, td_worker.chat; print('jwt' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)

    assert ended.stdout == b"False\n"
