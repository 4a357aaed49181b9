"""The commands that talk to a running runtime, called as a shell calls them."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from td_runtime import __version__
from tests.acceptance.command import answer, command, running, td, write_project
from tests.acceptance.forked import forked
from tests.runtime_process import PATIENCE, RuntimeProcess

TASKS = """
import asyncio
import os
from td_worker import streams

async def echo(payload):
    return {"got": payload}

def fail(payload):
    raise ValueError("no good")

async def write(payload):
    async with streams.writer("log") as writer:
        for number in range(payload):
            await writer.write({"number": number, "text": "caf\\u00e9"})

async def write_until(payload):
    async with streams.writer("log") as writer:
        number = 0
        while not os.path.exists(payload):
            await writer.write(number)
            await writer.flush()
            number += 1
    return number
"""


@pytest.fixture(scope="module")
def runtime() -> Iterator[RuntimeProcess]:
    """Run one runtime for all tests that do not stop it."""
    options = {"fail": "retry = {max_attempts = 1}"}
    with (
        tempfile.TemporaryDirectory(prefix="td-", dir="/tmp") as folder,
        RuntimeProcess(Path(folder), tasks=TASKS, workers=1, task_options=options) as started,
    ):
        yield started


def test_the_version_is_the_installed_one() -> None:
    """`--version` prints name and version, and nothing else."""
    done = td("--version")

    assert (done.returncode, done.stdout, done.stderr) == (0, f"td-runtime {__version__}\n", "")


@pytest.mark.parametrize("how", ["inline", "file", "stdin"])
def test_a_payload_comes_from_the_command_line_a_file_or_stdin(
    runtime: RuntimeProcess, tmp_path: Path, how: str
) -> None:
    """`--payload JSON`, `@file` and `-` give the task the same value, and `--json` one object."""
    text = '{"a": [1, "caf\u00e9"]}'
    (tmp_path / "payload.json").write_text(text)
    option = {"inline": text, "file": f"@{tmp_path}/payload.json", "stdin": "-"}[how]

    done = td(
        *("trigger", "echo", "--payload", option, "--wait", "--json"),
        config=runtime.config,
        stdin=text if how == "stdin" else None,
    )

    document = answer(done)
    assert document["status"] == "COMPLETED"
    assert document["output"] == {"got": {"a": [1, "caf\u00e9"]}}
    assert document["error"] is None
    assert runtime.result(document["run_id"]).status == "COMPLETED"
    assert done.stderr == ""


def test_trigger_does_not_wait_unless_told(runtime: RuntimeProcess) -> None:
    """Without `--wait` it answers with the id of a run that is queued, durable, and then runs."""
    document = answer(forked("trigger", "echo", "--json", config=runtime.config))

    assert document.keys() == {"run_id", "status", "output", "error"}
    assert document["status"] == "QUEUED"
    assert runtime.output(document["run_id"]) == {"got": None}


def test_trigger_tells_people_in_lines(runtime: RuntimeProcess) -> None:
    """Without `--json`: id and status on one line, the output on the next."""
    done = td("trigger", "echo", "--payload", "7", "--wait", config=runtime.config)

    first, second = done.stdout.splitlines()
    assert first.split()[1:] == ["COMPLETED"]
    assert second == '{"got":7}'


def test_a_failed_run_fails_the_command(runtime: RuntimeProcess) -> None:
    """`trigger --wait` of a run that fails exits with 1 and gives its error, either way."""
    as_json = td("trigger", "fail", "--wait", "--json", config=runtime.config)
    in_words = td("trigger", "fail", "--wait", config=runtime.config)

    document = answer(as_json, code=1)
    assert document["status"] == "FAILED"
    assert document["output"] is None
    assert document["error"]["type"] == "ValueError"
    assert document["error"]["message"] == "no good"
    assert in_words.returncode == 1
    assert in_words.stdout.split()[1:] == ["FAILED"]
    assert in_words.stderr == "ValueError: no good\n"


def test_status_shows_supervisor_workers_and_runs(runtime: RuntimeProcess) -> None:
    """`status` names the supervisor's process, each worker's, and counts runs; `--json` as well."""
    runtime.output(runtime.trigger("echo"))
    worker = runtime.status().workers[0]

    document = answer(forked("status", "--json", config=runtime.config))
    shown = forked("status", config=runtime.config).stdout

    assert document["pid"] == runtime.process.pid
    assert document["state"] == "running"
    assert [found["pid"] for found in document["workers"]] == [worker.pid]
    assert document["runs"]["COMPLETED"] >= 1
    assert f"pid {runtime.process.pid}, running" in shown
    assert str(worker.pid) in shown


def test_check_finds_nothing_wrong(runtime: RuntimeProcess) -> None:
    """`check` beside a running runtime names config, folders, each task, and who answers."""
    done = td("check", config=runtime.config)

    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == f"ok  config {runtime.config}"
    assert "ok  task write_until: write_until(payload)" in lines
    assert lines[-1] == f"ok  control plane {runtime.url} answers"
    assert all(line.startswith("ok  ") for line in lines)


def test_a_stream_is_printed_one_chunk_a_line(runtime: RuntimeProcess) -> None:
    """`streams read RUN KEY` prints each chunk as JSON, in order, and ends."""
    run_id = runtime.trigger("write", 300)
    runtime.result(run_id)

    done = td("streams", "read", run_id, "log", config=runtime.config)

    assert (done.returncode, done.stderr) == (0, "")
    expected = [f'{{"number":{n},"text":"caf\u00e9"}}' for n in range(300)]
    assert done.stdout.splitlines() == expected


def test_a_stream_that_is_not_there_is_said(runtime: RuntimeProcess) -> None:
    """A key that nobody wrote to prints nothing, and says so on stderr."""
    run_id = runtime.trigger("write", 1)
    runtime.result(run_id)

    # The beginning of an id is as good as the whole.
    done = forked("streams", "read", run_id[:-1], "nope", config=runtime.config)

    assert (done.returncode, done.stdout) == (0, "")
    assert f"stream 'nope' of {run_id} has no records" in done.stderr
    assert "`td-runtime platform stats` shows which" in done.stderr


def test_following_a_stream_shows_chunks_at_once_and_ends_with_the_run(
    runtime: RuntimeProcess, tmp_path: Path
) -> None:
    """`--follow` prints while the run writes, misses nothing, and ends when the run has."""
    stop = tmp_path / "stop"
    run_id = runtime.trigger("write_until", str(stop))
    follow = command("streams", "read", run_id, "log", "--follow", config=runtime.config)
    with subprocess.Popen(follow, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None

        first = [process.stdout.readline() for _ in range(20)]
        assert runtime.status().runs["EXECUTING"] >= 1
        stop.touch()
        rest = process.stdout.read().splitlines()

        assert process.wait(PATIENCE) == 0
    numbers = [int(line) for line in first + rest]
    assert numbers == list(range(runtime.output(run_id)))


@pytest.mark.parametrize("what", ["follow", "wait"])
def test_ctrl_c_ends_a_command_that_waits(
    runtime: RuntimeProcess, tmp_path: Path, what: str
) -> None:
    """Ctrl-C ends `streams read --follow` and `trigger --wait` with 130, without a word."""
    stop = tmp_path / "stop"
    run_id = runtime.trigger("write_until", str(stop))
    runtime.stored(run_id, "log", at_least=1)
    waiting = {
        "follow": ["streams", "read", run_id, "log", "--follow"],
        "wait": ["trigger", "write_until", "--payload", f'"{stop}"', "--wait"],
    }[what]
    accepted = len(runtime.find("run.accepted"))
    with subprocess.Popen(
        command(*waiting, config=runtime.config), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        if what == "follow":
            process.stdout.readline()
        else:
            runtime.until(lambda _: len(runtime.find("run.accepted")) > accepted, "the run")

        process.send_signal(signal.SIGINT)

        assert process.wait(PATIENCE) == 130
        assert process.stderr.read() == b""
    stop.touch()


def test_a_reader_that_has_enough_is_no_failure(runtime: RuntimeProcess) -> None:
    """`streams read … | head -1`: it ends well and says nothing."""
    run_id = runtime.trigger("write", 20_000)
    runtime.result(run_id)
    words = command("streams", "read", run_id, "log", config=runtime.config)
    script = f"set -o pipefail; {shlex.join(words)} | head -1"

    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith('{"number":0')


@pytest.mark.parametrize("arguments", [["status"], ["status", "--json"], ["--help"]], ids=" ".join)
def test_a_closed_pipe_is_no_traceback(runtime: RuntimeProcess, arguments: list[str]) -> None:
    """A command whose stdout is a pipe that nobody reads ends in silence."""
    reader, writer = os.pipe()
    os.close(reader)
    config = None if arguments == ["--help"] else runtime.config

    done = subprocess.run(
        command(*arguments, config=config), stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)

    assert done.stderr == b""


def test_a_shell_can_use_the_environment(runtime: RuntimeProcess) -> None:
    """`eval "$(td-runtime env)"` sets what a client needs: the gateway takes URL and key."""
    ask = (
        "import os, urllib.request as u; e = os.environ; print(u.urlopen(u.Request("
        "e['TRIGGER_API_URL'] + '/platform/v1/ping', "
        "headers={'authorization': 'Bearer ' + e['TRIGGER_SECRET_KEY']})).status)"
    )
    words = shlex.join(command("env", config=runtime.config))
    script = f'eval "$({words})"; {shlex.quote(sys.executable)} -c {shlex.quote(ask)}'

    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)

    assert (done.stdout, done.stderr) == ("200\n", "")


def test_platform_stats_count_puts_and_records(runtime: RuntimeProcess) -> None:
    """`platform stats --json` has PUTs by slot and records by stream; the table has the same."""
    run_id = runtime.trigger("write", 12)
    runtime.result(run_id)

    document = answer(forked("platform", "stats", "--json", config=runtime.config))
    shown = forked("platform", "stats", config=runtime.config).stdout.splitlines()

    assert document["puts"][f"run/{run_id}/log"] == 1
    assert document["records"][f"{run_id}/log"] == 12
    assert ["1", "PUTs", f"run/{run_id}/log"] in [line.split() for line in shown]
    assert ["12", "records", f"{run_id}/log"] in [line.split() for line in shown]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["status", "--status", "500"], {"kind": "status", "status": 500, "count": None}),
        (["delay", "--delay", "250ms"], {"kind": "delay", "seconds": 0.25}),
        (["drop", "--count", "3"], {"kind": "drop", "count": 3, "target": "control-plane"}),
        (["drop-after", "--target", "stream-store"], {"target": "stream-store"}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_requests_can_be_broken_until_cleared(
    runtime: RuntimeProcess, arguments: list[str], expected: dict[str, object]
) -> None:
    """Each kind of `platform fault` is in force as asked for, is listed, and ends by `clear`."""
    config = runtime.config
    added = answer(forked("platform", "fault", *arguments, config=config))
    listed = answer(forked("platform", "fault", "list", config=config))
    cleared = answer(forked("platform", "fault", "clear", config=config))

    assert listed == added
    assert len(listed["faults"]) == 1
    assert expected.items() <= listed["faults"][0].items()
    assert cleared == {"faults": []}


@pytest.mark.parametrize("kind", ["expire", "revoke"])
def test_tokens_can_be_ended(runtime: RuntimeProcess, kind: str) -> None:
    """`platform fault expire` and `revoke` end a slot's live token, once."""
    run_id = runtime.trigger("write", 1)
    runtime.result(run_id)
    arguments = ["platform", "fault", kind, "--slot", f"run/{run_id}/log"]

    first = answer(forked(*arguments, config=runtime.config))
    second = answer(forked(*arguments, config=runtime.config))

    assert first == {"tokens": 1}
    assert second == {"tokens": 0}


def test_faults_need_leave(data_dir: Path) -> None:
    """Without `start --allow-faults` a fault is refused with words, and nothing is broken."""
    config = write_project(data_dir, {"echo": "tasks:echo"}, tasks=TASKS)
    with running("start", config=config, log="stdout") as started:
        started.until("runtime.ready")

        done = td("platform", "fault", "drop", config=config)

        assert (done.returncode, done.stdout) == (5, "")
        assert "start with --allow-faults" in done.stderr
        answer(td("platform", "stats", "--json", config=config))
        started.interrupt(signal.SIGTERM)
        assert started.end()[0] == 0


def test_run_beside_a_running_supervisor_is_refused(runtime: RuntimeProcess) -> None:
    """`run` on a data folder in use exits with 8, names the holder, and prints no result."""
    done = td("run", "echo", "--json", config=runtime.config)

    assert (done.returncode, done.stdout) == (8, "")
    assert f"another supervisor (pid {runtime.process.pid}) holds the data folder" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_config_file_is_found(data_dir: Path) -> None:
    """`-c` wins over ./td-runtime.toml, which wins over $TD_RUNTIME_CONFIG."""
    places = {name: data_dir / name for name in ("given", "here", "named", "empty")}
    for folder in places.values():
        folder.mkdir()
    files = {
        name: write_project(places[name], {"echo": "tasks:echo"}, tasks=TASKS)
        for name in ("given", "here", "named")
    }
    env = {"TD_RUNTIME_CONFIG": str(files["named"])}

    def found(cwd: Path, config: Path | None = None) -> str:
        return forked("check", config=config, cwd=cwd, env=env).stdout.splitlines()[0]

    assert found(places["here"], files["given"]) == f"ok  config {files['given']}"
    assert found(places["here"]) == f"ok  config {files['here']}"
    assert found(places["empty"]) == f"ok  config {files['named']}"
