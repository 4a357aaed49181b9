"""Broken configs and payloads: each is told by file, key and value, and takes nobody along."""

from __future__ import annotations

import itertools
import os
import re
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.acceptance.command import td, write_project
from tests.acceptance.forked import forked
from tests.runtime_process import RuntimeProcess

TASKS = """
import asyncio
from msgspec import Struct
from td_worker import streams

class Order(Struct):
    number: int
    lines: list[str] = []

async def hello(payload):
    return payload

async def order(payload: Order):
    return payload.number

async def hold(payload):
    while True:
        await asyncio.sleep(0.01)
        try:
            return open(payload).read()
        except FileNotFoundError:
            pass

def generator(payload):
    yield payload

def two(payload, more):
    return more

number = 3
"""


def _refused(done: CompletedProcess[str], code: int) -> str:
    """Return what a command that had to fail said, in one line; it printed nothing else."""
    assert done.returncode == code, done
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    # Usage errors come in a box that is wrapped to the terminal's width.
    return re.sub(r"[\s\u2500-\u257f]+", " ", done.stderr)


@dataclass(frozen=True, kw_only=True)
class Broken:
    """A config that must be refused.

    Attributes:
        old: Text of the good config that is replaced.
        new: By this.
        code: The exit code.
        says: Parts of the message; ``{config}`` and ``{folder}`` are filled in.
        files: Further files beside the config file.
        env: Added to the environment.
    """

    old: str = ""
    new: str = ""
    code: int = 3
    says: tuple[str, ...]
    files: dict[str, str] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)


ENTRYPOINT = '"tasks:hello"'

CONFIGS = {
    "unknown key": Broken(
        old="workers = 1",
        new="worker = 1",
        says=("{config}: runtime.worker = 1: is not a key", 'did you mean "runtime.workers"?'),
    ),
    "unknown table": Broken(
        old="[credentials]",
        new="[credential]",
        says=("{config}: credential", 'did you mean "credentials"?'),
    ),
    "wrong type": Broken(
        old="workers = 1",
        new='workers = "four"',
        says=('{config}: runtime.workers = "four": must be a whole number from 1 to 1024',),
    ),
    "unknown duration": Broken(
        old='drain_timeout = "20s"',
        new='drain_timeout = "20 sec"',
        says=('{config}: runtime.drain_timeout = "20 sec": must be a duration', '"1m30s"'),
    ),
    "wrong word": Broken(
        old='level = "error"',
        new='level = "eror"',
        says=('{config}: log.level = "eror": must be one of', 'did you mean "error"?'),
    ),
    "two tasks of one id": Broken(
        new='[[tasks]]\nid = "hello"\nentrypoint = "tasks:order"\n',
        says=("{config}: tasks[1].id", '"hello"', "tasks[0]"),
    ),
    "no entrypoint": Broken(
        new='[[tasks]]\nid = "other"\n',
        says=('{config}: tasks[1].entrypoint (task "other"): is missing',),
    ),
    "entrypoint of a wrong form": Broken(
        old=ENTRYPOINT,
        new='"tasks.hello"',
        says=(
            '{config}: tasks[0].entrypoint (task "hello") = "tasks.hello": must be',
            '"module:function", such as',
        ),
    ),
    "no TOML": Broken(
        old="workers = 1",
        new="workers = four",
        says=("{config}:4:11: Invalid value", "strings need quotes"),
    ),
    "a URL without a key": Broken(
        new='[control_plane]\nurl = "https://api.trigger.dev"\n',
        says=(
            "{config}: control_plane.secret_key: is missing",
            'control_plane.url = "https://api.trigger.dev" needs one',
            "set TRIGGER_SECRET_KEY",
        ),
    ),
    "a wrong variable": Broken(
        env={"TD_RUNTIME_LIMITS__BATCH": "many"},
        says=(
            'environment variable TD_RUNTIME_LIMITS__BATCH: limits.batch = "many": must be a whole',
            "at: {config}",
        ),
    ),
    "no cron pattern": Broken(
        old=ENTRYPOINT,
        new=ENTRYPOINT + '\ncron = "61 * * * *"',
        says=(
            (
                '{config}: tasks[0].cron (task "hello") = "61 * * * *": must be a cron pattern of '
                'five fields, such as "*/15 * * * *" or "0 9 * * MON-FRI"; bad minute'
            ),
        ),
    ),
    "a cron pattern with seconds": Broken(
        old=ENTRYPOINT,
        new=ENTRYPOINT + '\ncron = "0 * * * * *"',
        says=(
            '= "0 * * * * *": must be a cron pattern',
            "five fields: minute, hour, day of month, month, day of week",
        ),
    ),
    "no time zone": Broken(
        old=ENTRYPOINT,
        new=ENTRYPOINT + '\ntimezone = "Mars/Olympus"',
        says=(
            (
                '{config}: tasks[0].timezone (task "hello") = "Mars/Olympus": must be a time zone '
                'that this machine knows, such as "UTC" or "Europe/Berlin"'
            ),
        ),
    ),
    "no policy for missed ticks": Broken(
        old=ENTRYPOINT,
        new=ENTRYPOINT + '\nmissed_ticks = "all"',
        says=('.missed_ticks (task "hello") = "all": must be one of "run_once", "skip"',),
    ),
    "no attempt": Broken(
        old=ENTRYPOINT,
        new=ENTRYPOINT + "\nretry = {max_attempts = 0}",
        says=(
            (
                '{config}: tasks[0].retry.max_attempts (task "hello") = 0: '
                "must be a whole number from 1 to 1000"
            ),
        ),
    ),
    "an unknown key of retry": Broken(
        old=ENTRYPOINT,
        new=ENTRYPOINT + "\nretry = {attempts = 3}",
        says=('= 3: is not a key of this table; did you mean "tasks[0].retry.max_attempts"?',),
    ),
    "retry is a number": Broken(
        old=ENTRYPOINT,
        new=ENTRYPOINT + "\nretry = 3",
        says=('.retry (task "hello") = 3: must be a table such as {{max_attempts = 3}}',),
    ),
    "waits that exclude each other": Broken(
        old=ENTRYPOINT,
        new=ENTRYPOINT + '\nretry = {min_timeout = "10s", max_timeout = "1s"}',
        says=(
            (
                '{config}: tasks[0].retry.min_timeout (task "hello") = "10s": '
                "must not exceed max_timeout, which is 1s"
            ),
        ),
    ),
    "no room for a run": Broken(
        old=ENTRYPOINT,
        new=ENTRYPOINT + "\nconcurrency = 0",
        says=('.concurrency (task "hello") = 0: must be a whole number from 1 to 1000000',),
    ),
    "fewer replicas than none": Broken(
        old=ENTRYPOINT,
        new=ENTRYPOINT + "\nreplicas = -1",
        says=('.replicas (task "hello") = -1: must be a whole number from 0 to 10000',),
    ),
    "a queue of two words": Broken(
        old=ENTRYPOINT,
        new=ENTRYPOINT + '\nqueue = "two words"',
        says=('.queue (task "hello") = "two words": must be 1 to 128 letters, digits',),
    ),
    "a duration without a unit": Broken(
        old=ENTRYPOINT,
        new=ENTRYPOINT + "\nmax_duration = 30",
        says=('.max_duration (task "hello") = 30: must be a duration from 10ms to 365d',),
    ),
    "history for ever": Broken(
        new='[store]\nretention_age = "forever"\n',
        says=('{config}: store.retention_age = "forever": must be a duration from 1s to 3650d',),
    ),
    "a limit that no message has room for": Broken(
        new='[limits]\npayload = "1 GiB"\n',
        says=('{config}: limits.payload = "1 GiB": must be a size from 1KiB to 15MiB',),
    ),
    "an address of another machine": Broken(
        new='[gateway]\nlisten = "192.0.2.1:0"\nallow_other_interfaces = true\n',
        says=('{config}: gateway.listen = "192.0.2.1:0": nobody can listen there',),
    ),
    "no such module": Broken(
        old=ENTRYPOINT,
        new='"taks:hello"',
        code=4,
        says=(
            "{config}: tasks[0].entrypoint = 'taks:hello' (task 'hello'): there is no module",
            "no module 'taks'; did you mean 'tasks'?",
        ),
    ),
    "no such function": Broken(
        old=ENTRYPOINT,
        new='"tasks:helo"',
        code=4,
        says=("= 'tasks:helo'", "{folder}/tasks.py has no 'helo'; did you mean 'hello'?"),
    ),
    "a generator": Broken(
        old=ENTRYPOINT,
        new='"tasks:generator"',
        code=4,
        says=("{config}: tasks[0].entrypoint = 'tasks:generator'", "is a generator"),
    ),
    "a wrong signature": Broken(
        old=ENTRYPOINT,
        new='"tasks:two"',
        code=4,
        says=("tasks:two(payload, more) cannot be called with one argument", "{config}"),
    ),
    "no function": Broken(
        old=ENTRYPOINT,
        new='"tasks:number"',
        code=4,
        says=("{config}: tasks[0].entrypoint = 'tasks:number'", "is int"),
    ),
    "a module that raises": Broken(
        old=ENTRYPOINT,
        new='"broken:task"',
        code=4,
        files={"broken.py": "raise RuntimeError('no database')"},
        says=("= 'broken:task'", "importing 'broken' raised RuntimeError: no database"),
    ),
    "a module that needs another": Broken(
        old=ENTRYPOINT,
        new='"broken:task"',
        code=4,
        files={"broken.py": "import no_such_library"},
        says=("= 'broken:task'", "importing 'broken' failed: No module named 'no_such_library'"),
    ),
    "a module that three tasks are in": Broken(
        old=ENTRYPOINT,
        new='"broken:a"\n[[tasks]]\nid = "b"\nentrypoint = "broken:b"\n'
        '[[tasks]]\nid = "c"\nentrypoint = "broken:c"\n',
        code=4,
        files={"broken.py": "def a(:"},
        says=(
            "tasks[0].entrypoint = 'broken:a' (task 'hello'): importing 'broken' raised",
            "SyntaxError: invalid syntax (broken.py, line 1) (and so for 2 more tasks) at:",
        ),
    ),
    "hooks that are not there": Broken(
        old=ENTRYPOINT,
        new='"tasks:hello"\nhooks = "lifecycel"\n',
        code=4,
        says=("{config}: tasks[0] (task 'hello'): hooks: importing 'lifecycel' raised",),
    ),
    "a module that exits": Broken(
        old=ENTRYPOINT,
        new='"broken:task"',
        code=4,
        files={"broken.py": "print('bye')\nimport sys\nsys.exit(0)"},
        says=("= 'broken:task'", "importing 'broken' raised SystemExit: 0"),
    ),
    "a module that ends its process": Broken(
        old=ENTRYPOINT,
        new='"broken:task"',
        code=4,
        files={"broken.py": "import os\nos._exit(0)"},
        says=("ended the process that looked at them", "at: {config}"),
    ),
}


@pytest.mark.parametrize("broken", CONFIGS.values(), ids=CONFIGS.keys())
def test_a_broken_config_is_told_by_file_key_and_value(data_dir: Path, broken: Broken) -> None:
    """`start` refuses it with its own exit code; stdout stays empty, nothing is a traceback."""
    # Log lines go to stdout; at this level none is due.
    config = write_project(data_dir, {"hello": "tasks:hello"}, tasks=TASKS, level="error")
    text = config.read_text()
    assert broken.old in text
    config.write_text(text.replace(broken.old, broken.new) if broken.old else text + broken.new)
    for name, source in broken.files.items():
        (data_dir / name).write_text(source)

    done = forked("start", config=config, env=broken.env)

    said = _refused(done, broken.code)
    for part in broken.says:
        assert part.format(config=config, folder=data_dir) in said


def _open_to_others(path: Path) -> None:
    path.mkdir(mode=0o755)


def _file(path: Path) -> None:
    path.write_text("not a folder")


FOLDERS = {
    "data folder open to others": ("data", _open_to_others, "runtime.data_dir", "mode 0755"),
    "data folder is a file": ("data", _file, "runtime.data_dir", "File exists"),
    "credentials open to others": ("credentials", _open_to_others, "credentials.dir", "mode 0755"),
    "credentials are a file": ("credentials", _file, "credentials.dir", "it is not a folder"),
}


@pytest.mark.parametrize(("name", "make", "key", "reason"), FOLDERS.values(), ids=FOLDERS.keys())
def test_a_folder_that_cannot_be_used_is_told(
    data_dir: Path, name: str, make: object, key: str, reason: str
) -> None:
    """`start` exits with 6, names file, key, value and reason, and starts nothing."""
    config = write_project(data_dir, {"hello": "tasks:hello"}, tasks=TASKS)
    assert callable(make)
    make(data_dir / name)

    said = _refused(forked("start", config=config), 6)

    assert f'{config}: {key} = "{data_dir / name}": ' in said
    assert reason in said


def test_a_data_folder_that_cannot_be_made_is_told(data_dir: Path) -> None:
    """`start` exits with 6 and names the path and its key."""
    config = write_project(data_dir, {"hello": "tasks:hello"}, tasks=TASKS)

    done = forked(
        "start", config=config, env={"TD_RUNTIME_RUNTIME__DATA_DIR": "/proc/nowhere/data"}
    )

    said = _refused(done, 6)
    assert f'{config}: runtime.data_dir = "/proc/nowhere/data": the data folder cannot be made' in (
        said
    )


def test_check_finds_a_folder_that_cannot_be_used(data_dir: Path) -> None:
    """`check` finds what `start` would refuse, and makes neither folder."""
    config = write_project(data_dir, {"hello": "tasks:hello"}, tasks=TASKS)
    assert forked("check", config=config).returncode == 0
    assert not (data_dir / "data").exists()
    assert not (data_dir / "credentials").exists()
    _open_to_others(data_dir / "credentials")

    done = forked("check", config=config)

    assert done.returncode == 6
    assert f'{config}: credentials.dir = "{data_dir}/credentials"' in done.stderr


def test_a_control_plane_that_does_not_answer_is_told(data_dir: Path) -> None:
    """`check` exits with 5, names URL and keys, and does not repeat the secret."""
    with socket.socket() as taken:
        # Bound and not listening: whoever connects is refused, and nobody else gets the port.
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        more = f'[control_plane]\nurl = "{url}"\nsecret_key = "tr_dev_hush"\n'
        config = write_project(data_dir, {"hello": "tasks:hello"}, tasks=TASKS, more=more)

        done = td("check", config=config)

    assert done.returncode == 5
    assert f"at: {url}" in done.stderr
    assert "Check [control_plane] url and secret_key" in done.stderr
    assert "Traceback" not in done.stderr
    assert "tr_dev_hush" not in done.stderr


def test_a_config_file_that_is_not_there_is_told(data_dir: Path) -> None:
    """A file that -c or the variable names, or the lack of any, exits with 3 and says which."""
    named = {"TD_RUNTIME_CONFIG": "/nowhere/named.toml"}

    given = _refused(td("status", config=Path("/nowhere/given.toml")), 3)
    by_variable = _refused(td("status", cwd=data_dir, env=named), 3)
    none = _refused(td("status", cwd=data_dir), 3)

    assert "/nowhere/given.toml: no such file (given with -c)" in given
    assert "/nowhere/named.toml: no such file (named by TD_RUNTIME_CONFIG)" in by_variable
    assert f"no config file: tried {data_dir}/td-runtime.toml" in none


def test_a_runtime_that_is_not_up_is_told(data_dir: Path) -> None:
    """Commands that need a running supervisor say that none answers, where, and what to do."""
    config = write_project(data_dir, {"hello": "tasks:hello"}, tasks=TASKS)

    status = _refused(forked("status", config=config), 1)
    env = _refused(forked("env", config=config), 5)

    assert f"no supervisor answers at: {data_dir}/data next: Start one with" in status
    assert f"never started here at: {data_dir}/data next: Start it with" in env


# ---------------------------------------------------------------- payloads


@pytest.fixture(scope="module")
def runtime() -> Iterator[RuntimeProcess]:
    """Run one runtime whose payloads may have 1 KiB; at the end it still runs, the same process."""
    with tempfile.TemporaryDirectory(prefix="td-", dir="/tmp") as name:
        folder = Path(name)
        started = RuntimeProcess(folder, tasks=TASKS, workers=1)
        names = ("hello", "order", "hold")
        text = write_project(folder, {task: f"tasks:{task}" for task in names}, tasks=TASKS)
        text.write_text(text.read_text() + '[limits]\npayload = "1KiB"\n')
        with started:
            worker = started.status().workers[0].pid
            yield started
            assert [found.pid for found in started.status().workers] == [worker]


def test_a_command_line_that_is_wrong_is_told(runtime: RuntimeProcess) -> None:
    """An unknown command or option exits with 2 and names it and the nearest one."""
    command = _refused(forked("statsu"), 2)
    option = _refused(forked("trigger", "hello", "--wiat", config=runtime.config), 2)
    kind = _refused(forked("platform", "fault", "explode", config=runtime.config), 2)
    delay = _refused(
        forked("platform", "fault", "delay", "--delay", "5 sec", config=runtime.config), 2
    )

    assert "No such command 'statsu'. Did you mean 'status'" in command
    assert "--wiat" in option
    assert "--wait" in option
    assert "'explode' is not one of 'expire', 'revoke'" in kind
    assert "'5 sec' is no duration at: --delay" in delay


def test_an_unknown_task_is_told_with_the_nearest(runtime: RuntimeProcess) -> None:
    """`trigger` of a task that is not registered names it, the nearest one, all, and the file."""
    said = _refused(td("trigger", "helo", config=runtime.config), 1)

    assert "there is no task 'helo'; did you mean 'hello'? (registered: hello, order, hold)" in said
    assert f"at: {runtime.config}" in said


@pytest.mark.parametrize(
    ("payload", "stdin", "says"),
    [
        ("{a: 1}", None, "the payload is not JSON: .*; got '{a: 1}' at: --payload"),
        ("-", "[1, 2", r"not JSON: .*; got '\[1, 2' at: --payload - \(standard input\)"),
        ("@/nowhere/p.json", None, "cannot be read: No such file or directory at: --payload @/now"),
        ("@/", None, "cannot be read: Is a directory at: --payload @/"),
        (os.fsdecode(b"\xff"), None, "the payload is not JSON: .* at: --payload"),
        ("NaN", None, "the payload is not JSON: .*; got 'NaN'"),
    ],
    ids=["JSON", "stdin", "no file", "a folder", "not UTF-8", "NaN"],
)
def test_a_payload_that_is_no_json_is_told(
    runtime: RuntimeProcess, payload: str, stdin: str | None, says: str
) -> None:
    """`trigger` exits with 2, and names the option, where it was read from, and what was there."""
    done = forked("trigger", "hello", "--payload", payload, config=runtime.config, stdin=stdin)

    assert re.search(says, _refused(done, 2))


def test_a_payload_over_the_limit_is_told(runtime: RuntimeProcess, tmp_path: Path) -> None:
    """It is refused with its size, the limit's key and value, and the file; 20 MiB as well."""
    big, huge = tmp_path / "big.json", tmp_path / "huge.json"
    big.write_text('"' + "x" * 2000 + '"')
    huge.write_text('"' + "x" * (20 << 20) + '"')

    for path in (big, huge):
        done = forked("trigger", "hello", "--payload", f"@{path}", config=runtime.config)

        said = _refused(done, 1)
        assert f"for task 'hello' has {path.stat().st_size} bytes; limits.payload = 1024" in said
        assert f"at: {runtime.config}" in said


def test_a_payload_that_the_task_refuses_starts_no_run(runtime: RuntimeProcess) -> None:
    """The message names the task, the key, what it has and what was expected."""
    wrong, short = '{"number": 1, "lines": [7]}', '{"lines": []}'
    said = [
        _refused(forked("trigger", "order", "--payload", text, config=runtime.config), 1)
        for text in (wrong, short)
    ]

    why = "Expected `str`, got `int` - at `$.lines[0]`; got "
    assert f"task 'order' cannot take this payload: {why}" in said[0]
    assert "missing required field `number`" in said[1]
    assert runtime.find("run.accepted", task="order") == []


# ---------------------------------------------------------------- commands

_NO_RUN = "run_" + "0" * 25
_RUNS_LIST = (
    "next: `td-runtime runs list` shows all; finished ones are deleted after 30d "
    "(store.retention_age) or when there are more than 1,000,000 (store.retention_count)."
)
_A_TIME = (
    "next: Write 90s or 2h, or a time such as 2026-11-23T14:00 (of this host) or 2026-11-23T14:00Z."
)
_A_DURATION = "next: Write it as 200ms, 2s or 1m30s."

#: Arguments, exit code, and all that is said after "td-runtime: ".
COMMANDS = {
    "a status that there is not": (
        "runs list --status faild",
        2,
        (
            "'faild' is no status; did you mean FAILED? at: --status next: They are QUEUED, "
            "DELAYED, EXECUTING, WAITING, RETRYING, COMPLETED, FAILED, CRASHED, TIMED_OUT, "
            "CANCELED, EXPIRED."
        ),
    ),
    "no time": (
        "runs list --since yesterday",
        2,
        f"'yesterday' is neither a duration nor a time at: --since {_A_TIME}",
    ),
    "two pages": (
        "runs list --before run_x --after run_y",
        2,
        "--before and --after are different pages next: Give one of them.",
    ),
    "a parent that there is not": (
        "runs list --parent run_nope",
        1,
        f"there is no run 'run_nope' at: {{store}} {_RUNS_LIST}",
    ),
    "a run that there is not": (
        f"runs show {_NO_RUN}",
        1,
        f"there is no run '{_NO_RUN}' at: {{store}} {_RUNS_LIST}",
    ),
    "too short a beginning": (
        "runs show run_0",
        2,
        (
            "'run_0' is too short for the beginning of a run's id "
            "next: Give at least 8 characters of it."
        ),
    ),
    "several things at once": (
        "runs show run_x --payload --output",
        2,
        "--payload, --output and --tree exclude each other",
    ),
    "a run to cancel that there is not": (
        f"runs cancel {_NO_RUN}",
        1,
        f"there is no run '{_NO_RUN}' at: {{store}} {_RUNS_LIST}",
    ),
    "a run to replay that there is not": (
        f"runs replay {_NO_RUN}",
        1,
        f"there is no run '{_NO_RUN}' at: {{store}} {_RUNS_LIST}",
    ),
    "a run to wait for that there is not": (
        f"runs wait {_NO_RUN}",
        1,
        f"there is no run '{_NO_RUN}' at: {{store}} {_RUNS_LIST}",
    ),
    "no time-out": (
        "runs wait run_x --timeout 5",
        2,
        f"'5' is no duration at: --timeout {_A_DURATION}",
    ),
    "no delay": (
        "trigger hello --delay soon",
        2,
        f"'soon' is neither a duration nor a time at: --delay {_A_TIME}",
    ),
    "a date that there is not": (
        "trigger hello --delay 2026-02-30",
        2,
        f"'2026-02-30' is neither a duration nor a time at: --delay {_A_TIME}",
    ),
    "no ttl": ("trigger hello --ttl 5m30", 2, f"'5m30' is no duration at: --ttl {_A_DURATION}"),
    "no duration of an attempt": (
        "trigger hello --max-duration 1y",
        2,
        f"'1y' is no duration at: --max-duration {_A_DURATION}",
    ),
    "too many attempts": (
        "trigger hello --max-attempts 5000",
        1,
        "max_attempts = 5000 for task 'hello'; it must be from 1 to 1000 at: {config}",
    ),
    "a queue that there is not": (
        "trigger hello --queue task/helo",
        1,
        (
            "there is no queue 'task/helo'; did you mean 'task/hello'? "
            "(known: task/hello, task/hold, task/order) at: {config}"
        ),
    ),
    "metadata in a file that there is not": (
        "trigger hello --metadata @/nowhere",
        2,
        (
            "the metadata's file cannot be read: No such file or directory at: --metadata "
            "@/nowhere next: Name a file that exists, after the @."
        ),
    ),
    "a time for no key": (
        "trigger hello --idempotency-key-ttl 1h",
        2,
        "--idempotency-key-ttl without --idempotency-key says nothing",
    ),
    "a batch and a payload": (
        "trigger hello --batch - --payload 1",
        2,
        "--batch has the payloads, so there is no --payload",
    ),
    "a batch with one key": (
        "trigger hello --batch - --idempotency-key k",
        2,
        "--batch with one --idempotency-key would be one run, however many lines there are",
    ),
    "a batch that cannot be read": (
        "trigger hello --batch /nowhere",
        2,
        "the batch cannot be read: No such file or directory at: --batch /nowhere",
    ),
    "an empty batch": ("trigger hello --batch -", 2, "the batch has no lines at: --batch -"),
    "too long a drain": ("drain --timeout 8d", 2, "'8d' is longer than 7d at: --timeout"),
}


@pytest.mark.parametrize(("arguments", "code", "says"), COMMANDS.values(), ids=COMMANDS.keys())
def test_a_wrong_command_is_told_in_so_many_words(
    runtime: RuntimeProcess, arguments: str, code: int, says: str
) -> None:
    """It exits with its code, says what is wrong, where, and what to do, and changes nothing."""
    done = forked(*arguments.split(), config=runtime.config)

    store = runtime.data_dir.run_store
    expected = f"td-runtime: {says.format(config=runtime.config, store=store)}"
    assert _refused(done, code).strip() == expected


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("runs list --limit 0", "Invalid value for '--limit': 0 is not in the range 1<=x<=10000."),
        ("runs show", "Missing argument 'RUN'."),
        ("runs cancel", "Missing argument 'RUN...'."),
        ("tasks lst", "No such command 'lst'. Did you mean 'list'?"),
        ("stop --noww", "No such option: --noww (Possible options: --now)"),
        ("trigger hello --priority high", "'--priority': 'high' is not a valid float."),
        ("trigger hello --max-attempts 0", "'--max-attempts': 0 is not in the range x>=1."),
    ],
)
def test_a_command_that_is_no_command_is_told(
    runtime: RuntimeProcess, arguments: str, says: str
) -> None:
    """What the parser refuses exits with 2, and names the argument and its value."""
    done = forked(*arguments.split(), config=runtime.config, env={"COLUMNS": "200"})

    assert says in _refused(done, 2)


def test_a_beginning_of_several_ids_is_told(runtime: RuntimeProcess) -> None:
    """It names runs that begin so, and asks for more characters."""
    first, second = runtime.trigger_many("hello", [1, 2])
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=True))
    prefix = "".join(letter for letter, _ in same)

    said = _refused(forked("runs", "show", prefix, config=runtime.config), 2)

    assert f"several runs begin with '{prefix}': {prefix}" in said
    assert "next: Give more characters of the one you mean." in said


def test_a_line_of_a_batch_that_is_no_json_starts_no_run(
    runtime: RuntimeProcess, tmp_path: Path
) -> None:
    """Its number and its text are told; nothing of the batch is triggered."""
    lines = tmp_path / "lines"
    lines.write_text("1\n2\n{three}\n")

    done = forked(
        *("trigger", "hello", "--batch", str(lines), "--tag", "broken-batch"), config=runtime.config
    )

    said = _refused(done, 2)
    assert "td-runtime: line 3 is not JSON: " in said
    assert f"got '{{three}}' at: --batch {lines} next: Each line is the payload of one run." in said
    found = forked("runs", "list", "--tag", "broken-batch", config=runtime.config)
    assert found.stderr == "no runs\n"


def test_a_batch_that_is_refused_in_the_middle_says_how_far_it_came(
    runtime: RuntimeProcess,
) -> None:
    """Parts before are accepted; the message says which line is the first that is not."""
    lines = "".join('{"number": 1}\n' for _ in range(500)) + '{"numbr": 1}\n'

    done = forked("trigger", "order", "--batch", "-", config=runtime.config, stdin=lines)

    said = _refused(done, 1)
    assert "missing required field `number`" in said
    assert "next: The first 500 lines are accepted (run_" in said
    assert "go on with line 501" in said


def test_a_batch_that_is_refused_at_once_has_started_nothing(runtime: RuntimeProcess) -> None:
    """The message shows the payload that does not fit, and says that all may be sent again."""
    lines = '{"number": 1}\n{"numbr": 2}\n'

    said = _refused(
        forked("trigger", "order", "--batch", "-", config=runtime.config, stdin=lines), 1
    )

    assert 'got {"numbr": 2}' in said
    assert "next: No run was triggered." in said


def test_a_list_before_the_first_start_is_told(data_dir: Path) -> None:
    """Without a run store `runs list` exits with 6, and says where it would be."""
    config = write_project(data_dir, {"hello": "tasks:hello"}, tasks=TASKS)

    said = _refused(forked("runs", "list", config=config), 6)

    assert f"there is no run store yet at: {data_dir}/data/runs.db" in said
