"""The commands about runs, tasks and schedules, called as a shell calls them."""

from __future__ import annotations

import getpass
import json
import os
import pty
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from tests.acceptance.command import answer, command, running, td, write_project
from tests.acceptance.forked import forked
from tests.runtime_process import PATIENCE, RuntimeProcess, wait_until_gone

TASKS = """
import asyncio
from td_worker import tasks

async def echo(payload):
    return {"got": payload}

def fail(payload):
    raise ValueError("no good")

async def hold(payload):
    print("holding")
    await asyncio.sleep(3600)

async def hold_children(payload):
    await tasks.batch_trigger_and_wait("hold", [1, 2])

async def parent(payload):
    results = await tasks.batch_trigger_and_wait("middle", [1, 2])
    return [result.unwrap() for result in results]

async def middle(payload):
    return (await tasks.trigger_and_wait("echo", payload)).unwrap()

async def nightly(payload):
    pass
"""
OPTIONS = {
    "fail": "retry = {max_attempts = 1}",
    "echo": 'concurrency = 5\nconcurrency_per_key = 2\nqueue = "echoes"',
    "nightly": 'cron = "30 2 * * *"\ntimezone = "Europe/Zurich"',
}


@pytest.fixture(scope="module")
def runtime() -> Iterator[RuntimeProcess]:
    """Run one runtime for all tests that do not stop it."""
    with (
        tempfile.TemporaryDirectory(prefix="td-", dir="/tmp") as folder,
        RuntimeProcess(Path(folder), tasks=TASKS, workers=2, task_options=OPTIONS) as started,
    ):
        yield started


def _by() -> str:
    return f"cli: {getpass.getuser()} (user {os.getuid()}, process "


# ---------------------------------------------------------------- trigger


def test_every_option_of_a_run_arrives(runtime: RuntimeProcess) -> None:
    """What `trigger` is told is what `runs show --json` tells, with who asked for it."""
    before = time.time()
    options = {
        "--delay": "1h",
        "--ttl": "30m",
        "--priority": "2.5",
        "--idempotency-key": "every-option",
        "--idempotency-key-ttl": "1d",
        "--queue": "task/hold",
        "--concurrency-key": "user-1",
        "--max-attempts": "7",
        "--max-duration": "90s",
        "--metadata": '{"a": 1}',
        "--stream-run": "run_theirs",
    }
    words = [word for option in options.items() for word in option]

    triggered = answer(
        forked(
            *("trigger", "echo", "--payload", "[1]", "--tag", "red", "--tag", "blue", "--json"),
            *words,
            config=runtime.config,
        )
    )
    run = answer(forked("runs", "show", triggered["run_id"], "--json", config=runtime.config))

    assert run["status"] == "DELAYED"
    assert run["run_at"] >= before + 3600
    assert run["expires_at"] == pytest.approx(run["run_at"] + 1800)
    expected = {
        "task": "echo",
        "payload": [1],
        "tags": ["red", "blue"],
        "priority": 2.5,
        "idempotency_key": "every-option",
        "queue": "task/hold",
        "concurrency_key": "user-1",
        "max_attempts": 7,
        "max_duration": 90.0,
        "metadata": {"a": 1},
        "stream_run_id": "run_theirs",
    }
    assert {name: run[name] for name in expected} == expected
    assert run["triggered_by"].startswith(_by())


def test_a_delay_may_be_a_time(runtime: RuntimeProcess) -> None:
    """`--delay` with a date and a zone is that moment."""
    tomorrow = datetime.now(timezone(timedelta(hours=2))) + timedelta(days=1)
    at = tomorrow.isoformat(timespec="minutes")
    run_id = answer(forked("trigger", "echo", "--delay", at, "--json", config=runtime.config))[
        "run_id"
    ]

    run = answer(forked("runs", "show", run_id, "--json", config=runtime.config))

    assert run["run_at"] == datetime.fromisoformat(at).timestamp()


def test_a_second_run_with_a_key_is_the_first(runtime: RuntimeProcess) -> None:
    """The same `--idempotency-key`: the first run's id, with what has become of it."""
    words = ("trigger", "echo", "--idempotency-key", "twice", "--payload", "5", "--json")
    first = answer(forked(*words, "--wait", config=runtime.config))

    second = answer(forked(*words, config=runtime.config))

    assert second["run_id"] == first["run_id"]
    assert second["status"] == "COMPLETED"
    assert second["output"] == {"got": 5}


def test_a_batch_has_a_run_for_each_line(runtime: RuntimeProcess, tmp_path: Path) -> None:
    """Each line is a payload, empty ones are none; options hold for all; answers are in order."""
    (tmp_path / "lines").write_text('{"n": 1}\n\n"two"\n3\n')

    done = forked(
        *("trigger", "echo", "--batch", f"{tmp_path}/lines", "--tag", "batch", "--wait", "--json"),
        config=runtime.config,
    )

    runs = answer(done)["runs"]
    assert [run["output"]["got"] for run in runs] == [{"n": 1}, "two", 3]
    tagged = answer(forked("runs", "list", "--tag", "batch", "--json", config=runtime.config))
    assert [run["run_id"] for run in tagged["runs"]] == [run["run_id"] for run in reversed(runs)]


def test_a_batch_over_the_limit_is_sent_in_parts(runtime: RuntimeProcess) -> None:
    """1,200 lines from standard input are 1,200 runs, though `limits.batch` is 500."""
    lines = "".join(f"{number}\n" for number in range(1200))

    runs = answer(
        forked("trigger", "echo", "--batch", "-", "--json", stdin=lines, config=runtime.config)
    )

    ids = [run["run_id"] for run in runs["runs"]]
    assert len(set(ids)) == 1200
    assert runtime.output(ids[-1]) == {"got": 1199}


def test_a_batch_with_a_failed_run_fails(runtime: RuntimeProcess) -> None:
    """`--batch --wait` exits with 1 if one run did not complete, after it has told all."""
    done = forked(
        "trigger", "fail", "--batch", "-", "--wait", stdin="1\n2\n", config=runtime.config
    )

    assert done.returncode == 1
    assert [line.split()[1] for line in done.stdout.splitlines()] == ["FAILED", "FAILED"]


# ---------------------------------------------------------------- list and show


def test_runs_are_listed_page_by_page(runtime: RuntimeProcess) -> None:
    """Pages by `--before` and back by `--after` have every run once, newest first."""
    ids = runtime.trigger_many("nightly", list(range(7)))
    for run_id in ids:
        runtime.result(run_id)

    def page(*more: str) -> dict[str, Any]:
        words = ("runs", "list", "--task", "nightly", "--limit", "3", "--json", *more)
        found: dict[str, Any] = answer(forked(*words, config=runtime.config))
        return found

    first = page()
    second = page("--before", first["next"])
    third = page("--before", second["next"])
    back = page("--after", second["runs"][0]["run_id"])

    found = [run["run_id"] for part in (first, second, third) for run in part["runs"]]
    assert found == ids[::-1]
    assert third["next"] is None
    assert back["runs"] == first["runs"]


def test_a_list_has_the_runs_that_meet_every_condition(runtime: RuntimeProcess) -> None:
    """Status, task, tag, queue, parent and time each leave out what does not fit."""
    good = answer(
        forked("trigger", "echo", "--tag", "both", "--wait", "--json", config=runtime.config)
    )
    bad = answer(
        forked("trigger", "fail", "--tag", "both", "--wait", "--json", config=runtime.config),
        code=1,
    )
    parent = runtime.trigger("middle", 1)
    runtime.result(parent)
    one, other = good["run_id"], bad["run_id"]

    def found(*more: str) -> list[str]:
        page = answer(forked("runs", "list", "--json", *more, config=runtime.config))
        return [run["run_id"] for run in page["runs"]]

    assert found("--tag", "both") == [other, one]
    assert found("--tag", "both", "--status", "failed") == [other]
    assert found("--tag", "both", "--status", "FAILED", "--status", "COMPLETED") == [other, one]
    assert found("--tag", "both", "--task", "echo") == [one]
    assert found("--tag", "both", "--queue", "echoes") == [one]
    assert found("--tag", "both", "--since", "1h", "--until", "2030-01-01") == [other, one]
    assert found("--tag", "both", "--until", "1h") == []
    (child,) = found("--parent", parent)
    assert found("--parent", parent[:-1]) == [child]


def test_a_list_in_a_pipe_is_plain_text(runtime: RuntimeProcess) -> None:
    """One line a run under a header, nothing drawn; the hint to the next page goes to stderr."""
    for run_id in runtime.trigger_many("echo", [1, 2]):
        runtime.result(run_id)

    done = forked("runs", "list", "--limit", "1", config=runtime.config)

    header, line = done.stdout.splitlines()
    assert header.split() == ["run", "task", "status", "attempt", "created", "took", "tags"]
    assert line.split()[1:4] == ["echo", "COMPLETED", "1"]
    assert done.stderr == f"older ones: --before {line.split()[0]}\n"


def test_a_list_on_a_terminal_is_a_table(runtime: RuntimeProcess) -> None:
    """However narrow the terminal, ids are whole."""
    run_id = runtime.trigger("echo", 1)
    runtime.result(run_id)
    ours, theirs = pty.openpty()

    words = command("runs", "list", "--limit", "1", config=runtime.config)
    subprocess.run(words, stdout=theirs, check=True, env={**os.environ, "COLUMNS": "60"})
    os.close(theirs)

    drawn = os.read(ours, 65536).decode()
    os.close(ours)
    assert run_id in drawn
    assert "\u2500" in drawn


def test_nothing_found_is_said(runtime: RuntimeProcess) -> None:
    """No run meets the conditions: nothing on stdout, "no runs" on stderr, and no failure."""
    done = forked("runs", "list", "--tag", "nobody", config=runtime.config)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "no runs\n")


def test_a_run_is_shown_in_words(runtime: RuntimeProcess) -> None:
    """The facts that a failed run has, its error and its traceback; none that it has not."""
    run_id = runtime.trigger("fail", "x" * 500)
    runtime.result(run_id)

    done = forked("runs", "show", run_id, config=runtime.config)

    assert done.returncode == 0
    facts = {line[:16].strip(): line[17:] for line in done.stdout.partition("\n\n")[0].splitlines()}
    assert facts["run"] == run_id
    assert facts["status"] == "FAILED"
    assert facts["error"] == "ValueError: no good"
    assert facts["payload"].endswith("\u2026 (502 bytes; --payload prints all)")
    assert 'raise ValueError("no good")' in done.stdout
    assert facts.keys().isdisjoint({"output", "parent", "canceled by"})


def test_payload_and_output_are_printed_alone(runtime: RuntimeProcess) -> None:
    """`--payload` and `--output` print JSON and nothing else; no output is said, and fails."""
    done, failed = runtime.trigger("echo", {"a": [1]}), runtime.trigger("fail")
    for run_id in (done, failed):
        runtime.result(run_id)

    assert answer(forked("runs", "show", done, "--payload", config=runtime.config)) == {"a": [1]}
    assert answer(forked("runs", "show", done, "--output", config=runtime.config)) == {
        "got": {"a": [1]}
    }
    none = forked("runs", "show", failed, "--output", config=runtime.config)
    assert (none.returncode, none.stdout) == (1, "")
    assert "the run has no output: it is FAILED" in none.stderr


def test_a_tree_is_shown_with_what_is_below(runtime: RuntimeProcess) -> None:
    """`--tree` shows each run before its children, in the order of acceptance, and no other run."""
    run_id = runtime.trigger("parent")
    runtime.result(run_id)

    shown = forked("runs", "show", run_id, "--tree", config=runtime.config).stdout.splitlines()
    runs = answer(forked("runs", "show", run_id, "--tree", "--json", config=runtime.config))["runs"]

    assert [(run["depth"], run["task"]) for run in runs] == [
        (0, "parent"),
        *[(1, "middle"), (2, "echo")] * 2,
    ]
    assert [line.split()[0] for line in shown] == [run["run_id"] for run in runs]
    assert [len(line) - len(line.lstrip()) for line in shown] == [0, 2, 4, 2, 4]
    (_, middle, echo, *_) = runs
    below = answer(
        forked("runs", "show", middle["run_id"], "--tree", "--json", config=runtime.config)
    )
    assert [run["run_id"] for run in below["runs"]] == [middle["run_id"], echo["run_id"]]


# ---------------------------------------------------------------- cancel, replay, wait


def test_runs_are_canceled(runtime: RuntimeProcess) -> None:
    """Waiting ones at once, one that executes by telling it, ended ones not; who asked is kept."""
    later = answer(forked("trigger", "echo", "--delay", "1h", "--json", config=runtime.config))
    held, ended = runtime.trigger("hold"), runtime.trigger("echo")
    runtime.event("task.printed", run_id=held)
    runtime.result(ended)

    done = forked(
        *("runs", "cancel", later["run_id"], held[:-2], ended, "--json"), config=runtime.config
    )

    assert answer(done) == {
        "canceled": [later["run_id"]],
        "requested": [held],
        "finished": [ended],
        "unknown": [],
    }
    assert runtime.result(held).status == "CANCELED"
    for run_id in (later["run_id"], held):
        run = answer(forked("runs", "show", run_id, "--json", config=runtime.config))
        assert run["canceled_by"].startswith(_by())


def test_children_are_canceled_by_option(runtime: RuntimeProcess) -> None:
    """`--children`: the run, and everything below it."""
    run_id = runtime.trigger("hold_children")
    runtime.until(lambda _: len(runtime.tree(run_id)) == 3, "the children")

    done = forked("runs", "cancel", run_id, "--children", config=runtime.config)

    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 3
    runtime.result(run_id)
    for view in runtime.tree(run_id):
        assert runtime.result(view.outcome.id).status == "CANCELED"


def test_an_unknown_run_among_others_is_told(runtime: RuntimeProcess) -> None:
    """The others are canceled all the same; the exit code is 1, with what to do."""
    later = answer(td("trigger", "echo", "--delay", "1h", "--json", config=runtime.config))
    unknown = "run_" + "0" * 25

    done = td("runs", "cancel", unknown, later["run_id"], config=runtime.config)

    assert done.returncode == 1
    assert done.stdout == f"{later['run_id']}  CANCELED\n"
    assert f"there is no run '{unknown}'" in done.stderr
    assert "`td-runtime runs list` shows all" in done.stderr


def test_a_run_is_replayed(runtime: RuntimeProcess) -> None:
    """A new run with the same payload and tags, or another payload; it says what it repeats."""
    first = answer(
        td(
            "trigger",
            "echo",
            "--payload",
            "3",
            "--tag",
            "t",
            "--wait",
            "--json",
            config=runtime.config,
        )
    )

    again = answer(td("runs", "replay", first["run_id"], "--wait", "--json", config=runtime.config))
    other = answer(
        td("runs", "replay", first["run_id"], "--payload", "4", "--json", config=runtime.config)
    )

    assert again["run_id"] != first["run_id"]
    assert again["output"] == {"got": 3}
    assert runtime.output(other["run_id"]) == {"got": 4}
    run = answer(td("runs", "show", other["run_id"], "--json", config=runtime.config))
    assert (run["replay_of"], run["tags"]) == (first["run_id"], ["t"])


def test_waiting_for_a_run_ends_as_the_run_does(runtime: RuntimeProcess) -> None:
    """`runs wait` prints the outcome; 0 for a completed run, 1 for any other."""
    good, bad = runtime.trigger("echo", 1), runtime.trigger("fail")

    done = answer(forked("runs", "wait", good, "--json", config=runtime.config))
    failed = answer(forked("runs", "wait", bad, "--json", config=runtime.config), code=1)

    assert (done["status"], done["output"]) == ("COMPLETED", {"got": 1})
    assert (failed["status"], failed["error"]["type"]) == ("FAILED", "ValueError")


def test_waiting_ends_in_time(runtime: RuntimeProcess) -> None:
    """`--timeout` gives up with 1, says that the run goes on, and it does."""
    run_id = runtime.trigger("hold")

    done = forked("runs", "wait", run_id, "--timeout", "200ms", config=runtime.config)

    assert (done.returncode, done.stdout) == (1, "")
    assert f"the run has not ended within 200ms\n  at: {run_id}" in done.stderr
    assert "It goes on" in done.stderr
    assert forked("runs", "cancel", run_id, config=runtime.config).returncode == 0
    assert runtime.result(run_id).status == "CANCELED"


# ---------------------------------------------------------------- tasks, schedules, status


def test_tasks_are_listed_with_their_runs(runtime: RuntimeProcess) -> None:
    """`tasks list` has what the config says of each task, and its runs by status."""
    runtime.result(runtime.trigger("fail"))

    tasks = answer(forked("tasks", "list", "--json", config=runtime.config))["tasks"]
    lines = forked("tasks", "list", config=runtime.config).stdout.splitlines()

    found = {task["id"]: task for task in tasks}
    echo = found["echo"]
    assert (echo["queue"], echo["concurrency"], echo["concurrency_per_key"]) == ("echoes", 5, 2)
    assert found["fail"]["retry"]["max_attempts"] == 1
    assert found["fail"]["runs"].keys() == {"FAILED"}
    assert found["nightly"]["cron"] == "30 2 * * *"
    assert lines[0].split()[:3] == ["task", "entrypoint", "queue"]
    assert [line.split()[0] for line in lines[1:]] == [task["id"] for task in tasks]


def test_schedules_are_listed_in_their_zone(runtime: RuntimeProcess) -> None:
    """The next three ticks are half past two in Zurich, whatever the host's zone is."""
    (schedule,) = answer(forked("schedules", "list", "--json", config=runtime.config))["schedules"]
    shown = forked("schedules", "list", config=runtime.config, env={"TZ": "Asia/Tokyo"}).stdout

    zone = ZoneInfo("Europe/Zurich")
    ticks = [datetime.fromtimestamp(at, zone) for at in schedule["next"]]
    assert [(tick.hour, tick.minute) for tick in ticks] == [(2, 30)] * 3
    assert schedule["next"][0] > time.time()
    assert schedule["last"] is None
    assert shown.count(" 02:30 +0") == 3


def test_status_tells_loops_and_schedules(data_dir: Path) -> None:
    """Each loop with its replicas, and the next tick of each schedule."""
    more = 'replicas = 2\n[[tasks]]\nid = "n"\nentrypoint = "tasks:nightly"\ncron = "0 0 1 1 *"\n'
    config = write_project(data_dir, {"hold": "tasks:hold"}, tasks=TASKS, more=more)
    with running("start", config=config, log="stdout") as started:
        started.until("runtime.ready")

        document = answer(forked("status", "--json", config=config))
        shown = forked("status", config=config).stdout

        assert document["loops"] == {"hold": 2}
        assert document["schedules"]["n"] > time.time()
        assert "\nloops: hold x 2\n" in shown
        assert "\nnext ticks: n 20" in shown


# ---------------------------------------------------------------- without a supervisor


def test_the_past_needs_no_supervisor(data_dir: Path) -> None:
    """After a stop, lists, a run and its outcome are there; nothing in the folder changes."""
    runtime = RuntimeProcess(data_dir, tasks=TASKS, workers=1, task_options=OPTIONS)
    with runtime:
        run_id = runtime.trigger("echo", 1)
        runtime.result(run_id)
    before = (data_dir / "data" / "runs.db").read_bytes()
    config = runtime.config

    listed = answer(td("runs", "list", "--json", config=config))
    shown = answer(td("runs", "show", run_id[:-3], "--output", config=config))
    waited = answer(td("runs", "wait", run_id, "--json", config=config))
    tasks = answer(td("tasks", "list", "--json", config=config))["tasks"]
    assert td("schedules", "list", config=config).returncode == 0

    assert [run["run_id"] for run in listed["runs"]] == [run_id]
    assert shown == {"got": 1}
    assert waited["status"] == "COMPLETED"
    assert {task["id"]: task["runs"] for task in tasks}["echo"] == {"COMPLETED": 1}
    assert (data_dir / "data" / "runs.db").read_bytes() == before


def test_runs_of_tasks_that_are_gone_are_told(data_dir: Path) -> None:
    """`tasks list` names runs that wait for a task which the config file does not have any more."""
    runtime = RuntimeProcess(data_dir, tasks=TASKS, workers=1)
    with runtime:
        forked("trigger", "hold", "--delay", "1h", config=runtime.config)
    config = write_project(data_dir, {"echo": "tasks:echo"}, tasks=TASKS)

    done = forked("tasks", "list", config=config)

    assert (done.returncode, done.stderr) == (0, "not in the config file: hold: DELAYED 1\n")


# ---------------------------------------------------------------- stop and drain


def _holding(data_dir: Path, drain_timeout: str) -> Path:
    return write_project(data_dir, {"hold": "tasks:hold"}, tasks=TASKS, drain_timeout=drain_timeout)


@pytest.mark.parametrize(
    "words", [["stop", "--now"], ["drain", "--timeout", "100ms"]], ids=" ".join
)
def test_stop_returns_when_it_is_gone(data_dir: Path, words: list[str]) -> None:
    """Runs under way are requeued when their time is over; `start` has ended with 0."""
    config = _holding(data_dir, "1h")
    with running("start", config=config, log="stdout") as started:
        started.until("runtime.ready")
        run_id = answer(td("trigger", "hold", "--json", config=config))["run_id"]
        started.until("task.printed")

        done = td(*words, config=config)

        pid = started.process.pid
        assert (done.returncode, done.stdout) == (0, f"stopped (pid {pid})\n")
        assert done.stderr.startswith("1 run is under way: ")
        assert started.end()[0] == 0
    (run,) = answer(td("runs", "list", "--json", config=config))["runs"]
    assert (run["run_id"], run["status"]) == (run_id, "QUEUED")


def test_drain_lets_runs_end(data_dir: Path) -> None:
    """`drain` waits for the run under way, however short `drain_timeout` is, then it is gone."""
    config = _holding(data_dir, "10ms")
    tasks = data_dir / "tasks.py"
    tasks.write_text(
        "import asyncio\nasync def hold(payload):\n    print(1)\n    await asyncio.sleep(1)\n"
    )
    with running("start", config=config, log="stdout") as started:
        started.until("runtime.ready")
        answer(forked("trigger", "hold", "--json", config=config))
        started.until("task.printed")
        tree = started.tree()

        done = forked("drain", "--json", config=config)

        assert answer(done) == {"pid": started.process.pid, "stopped": True}
        started.end()
        assert wait_until_gone(tree, within_s=10.0) == []
    (run,) = answer(forked("runs", "list", "--json", config=config))["runs"]
    assert run["status"] == "COMPLETED"


def test_ctrl_c_ends_the_wait_and_not_the_drain(data_dir: Path) -> None:
    """`drain` interrupted: 130 without a word; the supervisor drains on."""
    config = _holding(data_dir, "1h")
    with running("start", config=config, log="stdout") as started:
        started.until("runtime.ready")
        answer(forked("trigger", "hold", "--json", config=config))
        started.until("task.printed")
        with subprocess.Popen(
            command("drain", config=config), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stderr is not None
            process.stderr.readline()
            started.until("runtime.stop_requested")

            process.send_signal(signal.SIGINT)

            assert process.wait(PATIENCE) == 130
            assert process.stderr.read() == b""
        assert json.loads(forked("status", "--json", config=config).stdout)["state"] == "draining"
        assert forked("stop", "--now", config=config).returncode == 0
        assert started.end()[0] == 0
