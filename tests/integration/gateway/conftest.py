from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway_process import GatewayProcess, start_gateway


@pytest.fixture(scope="module")
def module_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with start_gateway(tmp_path_factory.mktemp("gateway")) as process:
        process.add_run("run_1")
        yield process


@pytest.fixture
def gateway(module_gateway: GatewayProcess) -> Iterator[GatewayProcess]:
    """A real gateway that knows one executing run, `run_1`; a module's tests share it."""
    yield module_gateway
    module_gateway.clear_faults()


@pytest.fixture
def own_gateway(tmp_path: Path) -> Iterator[GatewayProcess]:
    """The same for one test alone, which may stop and kill it."""
    with start_gateway(tmp_path) as process:
        process.add_run("run_1")
        yield process
