"""Runs scenarios of the official npm client of the stream store under Node."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateway_process import GatewayProcess, start_gateway
from tests.interop.node import NONE_FOUND, Node, find, install

HERE = Path(__file__).parent
PATIENCE_S = 100

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with start_gateway(tmp_path_factory.mktemp("gateway")) as process:
        process.add_run("run_1")
        yield process


@pytest.fixture(scope="session")
def node() -> Node:
    node = find()
    if node is None:
        pytest.skip(NONE_FOUND)
    install(node, HERE)

    return node


@pytest.fixture
def run(gateway: GatewayProcess, node: Node, request: pytest.FixtureRequest) -> Run:
    """Runs a scenario on a stream of the test's own and returns what it returned."""

    def call(name: str, **options: Any) -> Any:
        settings = {
            "url": gateway.url,
            "token": gateway.secret_key,
            "secretKey": gateway.secret_key,
            "basin": "td-embedded",
            "stream": f"interop {request.node.name}/é",
        }
        script = ["--import", "../only_loopback.mjs", "scenarios.mjs"]
        done = subprocess.run(
            [node.executable, *script, name, json.dumps(settings | options)],
            cwd=HERE,
            env=node.environment(),
            capture_output=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout.splitlines()[-1])

    return call
