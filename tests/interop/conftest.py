"""Node and the npm packages, once a session."""

from __future__ import annotations

import pytest

from tests.interop.node import NONE_FOUND, Node, find, install


@pytest.fixture(scope="session")
def node() -> Node:
    """Return a Node with the official SDK installed beside the scripts of this folder."""
    node = find()
    if node is None:
        pytest.skip(NONE_FOUND)
    install(node)

    return node
