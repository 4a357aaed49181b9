"""Broken configs and payloads: each is told by file, key and value, and takes nobody along."""

from __future__ import annotations

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

    done = td("start", config=config, env=broken.env)

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

    said = _refused(td("start", config=config), 6)

    assert f'{config}: {key} = "{data_dir / name}": ' in said
    assert reason in said


def test_a_data_folder_that_cannot_be_made_is_told(data_dir: Path) -> None:
    """`start` exits with 6 and names the path and its key."""
    config = write_project(data_dir, {"hello": "tasks:hello"}, tasks=TASKS)

    done = td("start", config=config, env={"TD_RUNTIME_RUNTIME__DATA_DIR": "/proc/nowhere/data"})

    said = _refused(done, 6)
    assert f'{config}: runtime.data_dir = "/proc/nowhere/data": the data folder cannot be made' in (
        said
    )


def test_check_finds_a_folder_that_cannot_be_used(data_dir: Path) -> None:
    """`check` finds what `start` would refuse, and makes neither folder."""
    config = write_project(data_dir, {"hello": "tasks:hello"}, tasks=TASKS)
    assert td("check", config=config).returncode == 0
    assert not (data_dir / "data").exists()
    assert not (data_dir / "credentials").exists()
    _open_to_others(data_dir / "credentials")

    done = td("check", config=config)

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

    status = _refused(td("status", config=config), 1)
    env = _refused(td("env", config=config), 5)

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
    command = _refused(td("statsu"), 2)
    option = _refused(td("trigger", "hello", "--wiat", config=runtime.config), 2)
    kind = _refused(td("platform", "fault", "explode", config=runtime.config), 2)
    delay = _refused(td("platform", "fault", "delay", "--delay", "5 sec", config=runtime.config), 2)

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
    done = td("trigger", "hello", "--payload", payload, config=runtime.config, stdin=stdin)

    assert re.search(says, _refused(done, 2))


def test_a_payload_over_the_limit_is_told(runtime: RuntimeProcess, tmp_path: Path) -> None:
    """It is refused with its size, the limit's key and value, and the file; 20 MiB as well."""
    big, huge = tmp_path / "big.json", tmp_path / "huge.json"
    big.write_text('"' + "x" * 2000 + '"')
    huge.write_text('"' + "x" * (20 << 20) + '"')

    for path in (big, huge):
        done = td("trigger", "hello", "--payload", f"@{path}", config=runtime.config)

        said = _refused(done, 1)
        assert f"for task 'hello' has {path.stat().st_size} bytes; limits.payload = 1024" in said
        assert f"at: {runtime.config}" in said


def test_a_payload_that_the_task_refuses_starts_no_run(runtime: RuntimeProcess) -> None:
    """The message names the task, the key, what it has and what was expected."""
    wrong, short = '{"number": 1, "lines": [7]}', '{"lines": []}'
    said = [
        _refused(td("trigger", "order", "--payload", text, config=runtime.config), 1)
        for text in (wrong, short)
    ]

    why = "Expected `str`, got `int` - at `$.lines[0]`; got "
    assert f"task 'order' cannot take this payload: {why}" in said[0]
    assert "missing required field `number`" in said[1]
    assert runtime.find("run.accepted", task="order") == []
