"""`start --reload`: what is edited is what runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.acceptance.command import answer, running, td, write_project
from tests.runtime_process import PATIENCE, wait_until_gone

TASKS = """
def version(payload):
    return 1
"""


def _result(config: Path) -> int:
    document = answer(td("trigger", "version", "--wait", "--json", config=config))
    output: int = document["output"]
    return output


def test_edited_code_runs(data_dir: Path) -> None:
    """Saved task code is what the next run executes; broken code is refused, and said."""
    config = write_project(data_dir, {"version": "tasks:version"}, tasks=TASKS)
    with running("start", "--reload", config=config, log="stdout") as started:
        started.until("runtime.ready")
        assert _result(config) == 1

        (data_dir / "tasks.py").write_text(TASKS.replace("1", "2"))
        started.until("reload.completed")
        assert _result(config) == 2

        (data_dir / "tasks.py").write_text("import no_such_library")
        refused = started.until("reload.refused")
        assert "No module named 'no_such_library'" in refused["error_message"]
        assert _result(config) == 2

        (data_dir / "tasks.py").write_text(TASKS.replace("1", "3"))
        config.write_text(config.read_text().replace("workers = 1", "workers = 2"))
        started.until("reload.completed")
        assert _result(config) == 3
        while len(answer(td("status", "--json", config=config))["workers"]) != 2:
            # The two files may have been seen one after the other.
            started.until("reload.completed")

        tree = started.tree()
        started.interrupt(signal.SIGTERM)
        code, _, err = started.end()
    assert code == 0
    assert err.splitlines()[0] == "td-runtime: changed: tasks.py"
    assert wait_until_gone(tree, within_s=10.0) == []


def test_the_watch_ends_with_a_supervisor_that_is_killed(data_dir: Path) -> None:
    """SIGKILL of the supervisor leaves no process, the watching one included."""
    config = write_project(data_dir, {"version": "tasks:version"}, tasks=TASKS)
    with running("start", "--reload", config=config, log="stdout") as started:
        started.until("runtime.ready")
        tree = started.tree()
        commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in tree]
        assert sum(b"td_runtime.code_watch" in command for command in commands) == 1

        started.process.kill()

        assert wait_until_gone(tree, within_s=PATIENCE) == []


def test_without_watchfiles_it_is_told(data_dir: Path) -> None:
    """`--reload` where watchfiles is not installed says what to install, and starts nothing."""
    config = write_project(data_dir, {"version": "tasks:version"}, tasks=TASKS)
    script = (
        "import sys; sys.modules['watchfiles'] = None; "
        "import importlib.util as u; u.find_spec = lambda name, find=u.find_spec: "
        "None if name == 'watchfiles' else find(name); "
        "from td_runtime.cli import main; main()"
    )

    done = subprocess.run(
        [sys.executable, "-c", script, "start", "--reload", "-c", str(config)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ,
    )

    assert (done.returncode, done.stdout) == (1, "")
    assert "--reload needs watchfiles, which is not installed" in done.stderr
    assert "next: Install it with `pip install 'td-runtime[reload]'`." in done.stderr
    assert not (data_dir / "data").exists()
