"""The whole runtime, and the official npm SDK talking with a run that is executing."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from td_runtime.cli.owned import OwnedSupervisor
from tests.interop.node import Node
from tests.interop.sdk import Sdk

pytestmark = pytest.mark.interop

CONFIG = """
[runtime]
data_dir = "data"
workers = 2

[credentials]
dir = "credentials"

[[tasks]]
id = "listen"
entrypoint = "listening:listen"
"""
TASK = '''
from td_worker import context, streams


async def listen(count):
    """Answer each of the first `count` parts on another stream of the same run."""
    heard = []
    async for part in streams.read(context.run.id, "in"):
        heard.append(part)
        await streams.append("out", {"heard": part, "attempt": context.attempt.number})
        if len(heard) == count:
            return heard
'''


class Runtime:
    """The commands of one configuration, as a user would type them."""

    def __init__(self, config: Path) -> None:
        self._config = config

    def exports(self) -> dict[str, str]:
        """Return the variables that `td-runtime env` exports."""
        words = shlex.split(self._call("env"))
        return dict(word.split("=", 1) for word in words if "=" in word)

    def trigger(self, task: str, payload: Any) -> dict[str, Any]:
        """Return what `td-runtime trigger --json` prints."""
        arguments = [task, "--payload", json.dumps(payload), "--json"]
        answer: dict[str, Any] = json.loads(self._call("trigger", *arguments))
        return answer

    def _call(self, command: str, *arguments: str) -> str:
        words = [sys.executable, "-m", "td_runtime", command, "-c", str(self._config), *arguments]
        return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout


@pytest.fixture
def runtime(data_dir: Path) -> Iterator[Runtime]:
    """Yield a running td-runtime with two workers and the task above."""
    (data_dir / "listening.py").write_text(TASK)
    config = data_dir / "td-runtime.toml"
    config.write_text(CONFIG)
    with OwnedSupervisor(config):
        yield Runtime(config)


def test_the_sdk_talks_with_a_running_task(runtime: Runtime, node: Node) -> None:
    """A task in a worker hears what the SDK appends to its run, and the SDK reads its answers."""
    exports = runtime.exports()
    sdk = Sdk(node=node, url=exports["TRIGGER_API_URL"], secret_key=exports["TRIGGER_SECRET_KEY"])
    run = runtime.trigger("listen", 3)

    sdk.append(run["run_id"], "in", "one", "zw\u00f6lf \U0001f389", '{"three": 3}')

    assert sdk.read(run["run_id"], "out", limit=3) == [
        {"heard": "one", "attempt": 1},
        {"heard": "zw\u00f6lf \U0001f389", "attempt": 1},
        {"heard": '{"three": 3}', "attempt": 1},
    ]
