"""`start` and `run`: what they leave behind, however they end."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.acceptance.command import answer, running, td, write_project
from tests.runtime_process import wait_until_gone

TASKS = """
import asyncio
import os
from td_worker import context, streams, tasks

async def fan_out(payload):
    results = await tasks.batch_trigger_and_wait("write", [payload] * 2)
    return [result.unwrap() for result in results]

async def write(payload):
    async with streams.writer("book", target="root") as writer:
        for number in range(payload):
            await writer.write(number)
    return payload

def fail(payload):
    raise ValueError("no good")

async def hold(payload):
    print("holding")
    await asyncio.sleep(3600)

async def finish_soon(payload):
    print("holding")
    await asyncio.sleep(0.5)
    return "finished"

def where(payload):
    return __file__
"""
NAMES = ("fan_out", "write", "hold", "finish_soon", "where", "fail")


def _project(folder: Path, drain_timeout: str = "20s") -> Path:
    return write_project(
        folder,
        {name: f"tasks:{name}" for name in NAMES},
        tasks=TASKS,
        more="retry = {max_attempts = 1}\n",
        drain_timeout=drain_timeout,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_start_drains_and_exits_with_0(data_dir: Path, number: signal.Signals) -> None:
    """SIGTERM, or Ctrl-C in a terminal: the run under way ends well, then everything does."""
    config = _project(data_dir)
    with running("start", config=config, log="stdout") as started:
        started.until("runtime.ready")
        answer(td("trigger", "finish_soon", "--json", config=config))
        started.until("task.printed")
        tree = started.tree()

        started.interrupt(number)

        assert started.until("run.completed")
        code, _, err = started.end()
        assert (code, err) == (0, "")
        assert len(tree) >= 4
        assert wait_until_gone(tree, within_s=10.0) == []


def test_a_second_signal_does_not_wait_for_the_drain(data_dir: Path) -> None:
    """Ctrl-C twice ends `start` with 0 long before the drain would have; the run is kept."""
    config = _project(data_dir, drain_timeout="1h")
    with running("start", config=config, log="stdout") as started:
        started.until("runtime.ready")
        answer(td("trigger", "hold", "--json", config=config))
        started.until("task.printed")
        tree = started.tree()

        started.interrupt()
        started.until("runtime.drain_requested")
        started.interrupt()

        assert started.end()[0] == 0
        assert wait_until_gone(tree, within_s=10.0) == []


def test_run_prints_one_json_object(data_dir: Path) -> None:
    """`run --json`: result, PUTs, records by stream, workers and seconds in one object; exit 0."""
    config = _project(data_dir)

    done = td("run", "fan_out", "--payload", "50", "--json", config=config)

    document = answer(done)
    run_id = document["run_id"]
    assert document["status"] == "COMPLETED"
    assert document["output"] == [50, 50]
    assert document["error"] is None
    assert document["puts"] == 1
    assert document["streams"] == {f"{run_id}/book": 100}
    assert document["chunks_read"] == 100
    assert len(document["workers"]) == 1
    assert document["duration_s"] > 0
    assert '"event":"runtime.stopped"' in done.stderr


def test_run_of_a_task_that_there_is_not_starts_nothing(data_dir: Path) -> None:
    """A slip such as `run list` executes nothing of what is left over; it says what there is."""
    config = _project(data_dir)

    done = td("run", "list", config=config)

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("td-runtime: there is no task 'list' (registered: ")
    assert not (data_dir / "data" / "runs.db").exists()


def test_run_tells_people_in_a_table(data_dir: Path) -> None:
    """Without `--json` there is a summary, and of a failed run its error and traceback; exit 1."""
    config = _project(data_dir)

    done = td("run", "write", "--payload", "5", config=config)
    failed = td("run", "fail", config=config, env={"TD_RUNTIME_LOG__LEVEL": "error"})

    rows = [line.replace("\u2502", " ").split() for line in done.stdout.splitlines()]
    assert done.returncode == 0
    assert ["chunks", "written", "5"] in rows
    assert ["chunks", "read", "back", "5"] in rows
    assert ["PUTs", "1"] in rows
    assert "write: COMPLETED" in done.stdout
    assert failed.returncode == 1
    assert "fail: FAILED" in failed.stdout
    assert failed.stderr.startswith("ValueError: no good\n")
    assert 'raise ValueError("no good")' in failed.stderr


def test_a_failed_run_fails_the_command(data_dir: Path) -> None:
    """`run --json` of a run that fails still prints the one object, and exits with 1."""
    config = _project(data_dir)

    document = answer(td("run", "fail", "--json", config=config), code=1)

    assert document["status"] == "FAILED"
    assert document["error"]["message"] == "no good"
    assert document["streams"] == {}


def test_tasks_come_from_the_configs_folder(data_dir: Path) -> None:
    """A tasks.py in the working folder is not taken for the one beside the config file."""
    config = _project(data_dir)
    elsewhere = data_dir / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "tasks.py").write_text("raise RuntimeError('the wrong tasks.py')")

    document = answer(td("run", "where", "--json", config=config, cwd=elsewhere))

    assert document["output"] == str(data_dir / "tasks.py")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_interrupted_leaves_no_process(
    data_dir: Path, number: signal.Signals
) -> None:
    """Ctrl-C or SIGTERM at `run`: it drains, exits with 1, and nothing is left; the run is kept."""
    config = _project(data_dir, drain_timeout="100ms")
    with running("run", "hold", "--json", config=config, log="stderr") as started:
        started.until("task.printed")
        tree = started.tree()

        started.interrupt(number)

        code, out, err = started.end()
        assert (code, out) == (1, "")
        assert "an unfinished run goes on when the runtime is started again" in err
        assert "Traceback" not in err
        assert len(tree) >= 5
        assert wait_until_gone(tree, within_s=10.0) == []


def test_a_run_that_is_killed_leaves_no_process(data_dir: Path) -> None:
    """SIGKILL of `run`: the supervisor notices and everything ends."""
    config = _project(data_dir, drain_timeout="100ms")
    with running("run", "hold", config=config, log="stderr") as started:
        started.until("task.printed")
        tree = started.tree()

        os.kill(started.process.pid, signal.SIGKILL)

        assert wait_until_gone(tree, within_s=15.0) == []


def test_run_tells_when_its_supervisor_was_killed(data_dir: Path) -> None:
    """SIGKILL of the supervisor below `run`: it says so, exits with 1, and nothing is left."""
    config = _project(data_dir)
    with running("run", "hold", config=config, log="stderr") as started:
        supervisor = started.until("runtime.started")["pid"]
        started.until("task.printed")
        tree = started.tree()

        os.kill(supervisor, signal.SIGKILL)

        code, out, err = started.end()
        assert (code, out) == (1, "")
        assert "td-runtime: the supervisor was killed by SIGKILL" in err
        assert "Traceback" not in err
        assert wait_until_gone(tree, within_s=10.0) == []


def test_run_takes_over_the_code_of_a_supervisor_that_gives_up(data_dir: Path) -> None:
    """A worker that dies at every boot ends `run` with 7, and only the supervisor tells why."""
    dies_in_workers = """
import os, pathlib
seen = pathlib.Path(__file__).with_name("seen")
if seen.exists():
    os._exit(9)
seen.touch()
def task(payload):
    pass
"""
    config = write_project(data_dir, {"task": "tasks:task"}, tasks=dies_in_workers, level="error")

    done = td("run", "task", config=config)

    told = [line for line in done.stderr.splitlines() if line.startswith("td-runtime: ")]
    assert (done.returncode, done.stdout) == (7, "")
    assert len(told) == 1
    assert "in a row before it was ready" in told[0]
    assert "Traceback" not in done.stderr
