"""Runs scenarios of the official Python client in its own environment."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateway_process import GatewayProcess, start_gateway
from tests.interop.s2_python.environment import make

SCRIPT = Path(__file__).with_name("scenarios.py")
PATIENCE_S = 100

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with start_gateway(tmp_path_factory.mktemp("gateway")) as process:
        process.add_run("run_1")
        yield process


@pytest.fixture(scope="session")
def python() -> Path:
    return make()


@pytest.fixture
def run(gateway: GatewayProcess, python: Path, request: pytest.FixtureRequest) -> Run:
    """Runs a scenario on a stream of the test's own and returns what it returned."""

    def call(name: str, **options: Any) -> Any:
        settings = {
            "url": gateway.url,
            "token": gateway.secret_key,
            "secret_key": gateway.secret_key,
            "basin": "td-embedded",
            "stream": f"interop {request.node.name}/é",
        }
        done = subprocess.run(
            [python, SCRIPT, name, json.dumps(settings | options)],
            capture_output=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout.splitlines()[-1])

    return call
