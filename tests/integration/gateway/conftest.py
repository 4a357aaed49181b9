from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway_process import GatewayProcess, start_gateway


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[GatewayProcess]:
    """A real gateway that knows one executing run, `run_1`."""
    with start_gateway(tmp_path) as process:
        process.add_run("run_1")
        yield process
