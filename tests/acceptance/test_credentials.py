"""``td-runtime credentials`` beside a running supervisor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.runtime_process import PATIENCE, RuntimeProcess

TASKS = """
import asyncio
import os
from td_worker import streams

async def talk(payload):
    async with streams.writer("chat") as writer:
        while not os.path.exists(payload["until"]):
            await writer.write("x")
            await writer.flush()
            await asyncio.sleep(0.05)
"""


def credentials(runtime: RuntimeProcess, *arguments: str, code: int = 0) -> str:
    """Run the command and return all it prints."""
    command = [sys.executable, "-m", "td_runtime", "credentials", *arguments]
    done = subprocess.run(
        [*command, "-c", str(runtime.config)], capture_output=True, text=True, timeout=PATIENCE
    )
    output = done.stdout + done.stderr
    assert done.returncode == code, output
    assert runtime.secret_key not in output

    return output


def listed(runtime: RuntimeProcess) -> list[dict[str, Any]]:
    return list(json.loads(credentials(runtime, "list", "--json"))["credentials"])


def test_credentials_are_listed_evicted_and_cleared_beside_the_workers(tmp_path: Path) -> None:
    """C8: what the command evicts, a worker in mid-stream replaces within 10 s; no run suffers."""
    until = tmp_path / "until"
    with RuntimeProcess(tmp_path, tasks=TASKS, workers=2) as runtime:
        run = runtime.trigger("talk", {"until": str(until)})
        runtime.stored(run, "chat", 1)
        slot = f"run/{run}/chat"

        (row,) = listed(runtime)
        assert set(row) == {
            *("slot", "id", "age", "expires_in", "refresh_in", "minted_by", "used_ago")
        }
        assert row["slot"] == slot
        assert row["minted_by"] in {worker.pid for worker in runtime.status().workers}
        assert 0 < row["refresh_in"] < row["expires_in"] <= 6 * 3600
        shown = credentials(runtime, "list").splitlines()
        assert [line.split()[:2] for line in shown] == [["slot", "id"], [slot, row["id"]]]

        said = credentials(runtime, "evict", slot)
        assert row["id"] in said
        assert "within 10 s" in said
        runtime.until(lambda _: len(runtime.find("credential.minted")) == 2, "a second mint")
        (newer,) = listed(runtime)
        assert newer["id"] != row["id"]

        until.touch()
        assert runtime.output(run) is None
        assert "dropped 1 " in credentials(runtime, "clear")
        assert listed(runtime) == []
        assert "has no credential" in credentials(runtime, "evict", slot, code=1)
        assert runtime.find("cache.degraded") == []


def test_a_folder_that_cannot_be_used_is_said_with_its_exit_code(tmp_path: Path) -> None:
    """C10: a credential folder that others may enter is refused with code 6 and its cure."""
    with RuntimeProcess(tmp_path, tasks=TASKS, workers=1) as runtime:
        os.chmod(runtime.credentials, 0o755)
        said = credentials(runtime, "list", code=6)
        os.chmod(runtime.credentials, 0o700)

    assert f"chmod 700 {runtime.credentials}" in said


def test_without_a_runtime_there_is_nothing_to_list(tmp_path: Path) -> None:
    """Before the first start there is no key, hence no namespace: code 5 and what to do."""
    runtime = RuntimeProcess(tmp_path, tasks=TASKS)
    command = [sys.executable, "-m", "td_runtime", "credentials", "list", "-c", str(runtime.config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)

    assert done.returncode == 5
    assert "td-runtime start" in done.stderr
    assert not runtime.credentials.exists()
