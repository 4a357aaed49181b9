"""The official Python client makes basins, streams and tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Run = Callable[..., Any]

REFUSED = {"status": 401, "code": "authn"}
FORBIDDEN = {"status": 403, "code": "permission_denied"}


def test_basins_and_streams_are_administered(run: Run) -> None:
    """Basins and streams are made, listed, configured and deleted through the client."""
    assert run("administer") == {
        "created": "interop-basin",
        "again": {"status": 409, "code": "resource_already_exists"},
        "ensured": ["CONFIG_UNCHANGED", "CONFIG_UPDATED", "CONFIG_UNCHANGED"],
        "basins": ["interop-basin"],
        "config": [True, False],
        "ensured_stream": ["CREATED", "CONFIG_UNCHANGED"],
        "streams": ["a/1", "a/2", "b", "c"],
        "page": [["a/1"], True],
        "stream_config": [3600, "arrival"],
        "arrival": True,
        "missing": {"status": 404, "code": "stream_not_found"},
        "left": ["a/2"],
        "locations": ["local"],
        "basins_left": [],
    }


def test_tokens_are_issued_with_a_scope(run: Run) -> None:
    """A token made through the client is held to its scope, its prefix and its end."""
    assert run("tokens") == {
        "ids": ["interop/reader", "interop/short"],
        "read": [[0, "hello", []]],
        "tail": FORBIDDEN,
        "other_basin": FORBIDDEN,
        "admin": FORBIDDEN,
        "whole_name": [[0, "hello", []]],
        "revoked": REFUSED,
        "expired": REFUSED,
    }


@pytest.mark.parametrize("kind", ["expire", "revoke"])
def test_a_read_session_ends_with_its_token(run: Run, kind: str) -> None:
    """A session that waits at the tail ends with 401 when its token expires or is revoked."""
    assert run("read_session_ends", kind=kind) == {"read": 1, **REFUSED}
