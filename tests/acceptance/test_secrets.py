"""C10 over a whole run: no token and no key where somebody could read them."""

from __future__ import annotations

from pathlib import Path
from typing import Never

import pytest

from td_sharedcache import CredentialCache, Slot
from tests.acceptance.command import td, write_project
from tests.acceptance.reading import read_stream
from tests.runtime_process import RuntimeProcess

TASKS = """
import asyncio
import os
import subprocess
from td_worker import streams

async def stream(payload):
    async with streams.writer("log") as writer:
        await writer.write("before")
        await writer.flush()
        print("flushed")
        while not os.path.exists(payload):
            await asyncio.sleep(0.01)
        await writer.write("after")

def show_environment(payload):
    subprocess.run(["env"], check=True)
    output = subprocess.run(["env"], check=True, capture_output=True, text=True).stdout
    return {"here": dict(os.environ), "below": output}

def fail(payload):
    raise RuntimeError(f"with {dict(os.environ)} and {globals()}")
"""


class NoMinter:
    """Gives nothing: what a cache returns over it was there."""

    def mint(self, slot: Slot) -> Never:
        raise AssertionError(f"{slot} is not in the shared cache")


def _live_token(runtime: RuntimeProcess, slot: Slot) -> bytes:
    """Return a slot's current token, as another process with the API key could have it."""
    cache = CredentialCache(
        runtime.credentials, origin=runtime.url, api_key=runtime.secret_key, minter=NoMinter()
    )
    token = cache.get_blocking(slot).access_token
    cache.close()
    return str(token).encode()


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _processes(pid: int) -> list[int]:
    """Return a process and all below it."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(below for child in children for below in _processes(int(child)))]


def _shown(pid: int) -> bytes:
    """Return what every process of this user can see of another one's start."""
    return b"".join(Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ"))


def test_no_secret_can_be_read_from_files_log_and_processes(data_dir: Path, tmp_path: Path) -> None:
    """A debug-level run with streams, a revoked token, a failure and a subprocess leaks nothing.

    The tokens, revoked and live, are in no file and no log line; the API key is in no file but
    ``secret``, in no log line, and in no argument list and no environment of any process.
    """
    options = {"fail": "retry = {max_attempts = 1}"}
    with RuntimeProcess(
        data_dir, tasks=TASKS, workers=2, level="debug", task_options=options
    ) as runtime:
        run_id = runtime.trigger("stream", str(tmp_path / "go"))
        runtime.event("task.printed", run_id=run_id, text="flushed")
        slot = Slot.run(run_id, "log")
        tokens = [_live_token(runtime, slot)]
        assert td("platform", "fault", "revoke", config=runtime.config).returncode == 0
        (tmp_path / "go").touch()
        runtime.result(run_id)
        tokens.append(_live_token(runtime, slot))
        shown = runtime.output(runtime.trigger("show_environment"))
        failed = runtime.result(runtime.trigger("fail"))
        processes = _processes(runtime.process.pid)
        starts = [_shown(pid) for pid in processes]
        key = runtime.secret_key.encode()

        assert read_stream(runtime, run_id, "log") == ["before", "after"]
        runtime.stop()

    assert len(set(tokens)) == 2
    assert all(len(token) > 20 for token in tokens)
    assert runtime.find("credential.evicted")
    assert [line for line in runtime.events if line["level"] == "debug"]
    assert "PATH=" in shown["below"]
    assert failed.status == "FAILED"
    files = {path: path.read_bytes() for path in _files(data_dir)}
    holding = [path for path, content in files.items() if key in content]
    assert holding == [data_dir / "data" / "secret"]
    for token in tokens:
        assert [path for path, content in files.items() if token in content] == []
        assert token not in runtime.raw_log
        assert not any(token in start for start in starts)
    assert key not in runtime.raw_log
    assert len(processes) >= 5
    assert not any(key in start for start in starts)


def test_folders_and_files_are_for_their_owner_alone(data_dir: Path) -> None:
    """After a run the data folder and the credential folder have mode 0700, credentials 0600."""
    with RuntimeProcess(data_dir, tasks=TASKS, workers=1) as runtime:
        run_id = runtime.trigger("stream", str(data_dir))
        runtime.result(run_id)

        for top in (data_dir / "data", runtime.credentials):
            folders = [top, *(path for path in top.rglob("*") if path.is_dir())]
            assert {oct(path.stat().st_mode & 0o777) for path in folders} == {"0o700"}
        private = {path for path in _files(runtime.credentials) if path.stat().st_mode & 0o077}
        assert private == set()


@pytest.mark.parametrize(
    "given",
    ['{env = "TRIGGER_SECRET_KEY"}', '{file = "key"}'],
    ids=["variable", "file"],  # pytest puts the id into the environment
)
def test_task_code_does_not_see_the_key(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    """However the config gives the key, neither task nor subprocess has it in its environment.

    Nor has any log line, and nor has any file that the user has not written.
    """
    if "env" in given:
        monkeypatch.setenv("TRIGGER_SECRET_KEY", "tr_the_key")
    (data_dir / "key").write_text("tr_the_key\n")
    config = write_project(
        data_dir,
        {"show_environment": "tasks:show_environment"},
        tasks=TASKS,
        more=f"[control_plane]\nsecret_key = {given}\n",
        level="debug",
    )

    done = td("run", "show_environment", "--json", config=config)

    assert done.returncode == 0, done.stderr
    assert '"PATH"' in done.stdout
    assert "TRIGGER_SECRET_KEY" not in done.stdout
    assert "tr_the_key" not in done.stdout + done.stderr
    written = _files(data_dir / "data") + _files(data_dir / "credentials")
    assert [path for path in written if b"tr_the_key" in path.read_bytes()] == []
