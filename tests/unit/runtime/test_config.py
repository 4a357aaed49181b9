"""The config file: what a good one becomes, and what a broken one is told."""

import dataclasses
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

from td_runtime.config import (
    Config,
    ListenAddress,
    RetryConfig,
    Secret,
    find_config,
    load_config,
)
from td_runtime.config.decode import SECTIONS, list_keys
from td_runtime.errors import ConfigError, ExitCode

ROOT = Path(__file__).parents[3]
REFERENCE = ROOT / "docs" / "reference" / "configuration.md"
TASK = '[[tasks]]\nid = "book"\nentrypoint = "tasks:book"\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "td-runtime.toml"
    path.write_text(text, "utf-8")

    return path


def load(folder: Path, text: str, env: Mapping[str, str] | None = None) -> Config:
    return load_config(write(folder, text), env or {})


def problems_of(folder: Path, text: str, env: Mapping[str, str] | None = None) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load(folder, text, env)
    assert caught.value.exit_code is ExitCode.CONFIG

    return caught.value.problems


# What a good file becomes


def test_a_task_alone_is_a_config(tmp_path):
    """Everything but the tasks has a default, and paths start at the file's folder."""
    config = load(tmp_path, TASK)

    assert config.folder == tmp_path
    assert config.runtime.data_dir == tmp_path / ".td-runtime"
    assert config.runtime.workers >= 1
    assert config.runtime.drain_timeout == 30.0
    assert config.control_plane.is_embedded
    assert config.control_plane.secret_key is None
    assert config.credentials.dir == Path("~/.cache/td-runtime/credentials").expanduser()
    assert config.gateway.listen == ListenAddress(host="127.0.0.1", port=0)
    assert config.tasks[0].retry == RetryConfig()


def test_units_are_read(tmp_path):
    """Durations become seconds, sizes become bytes."""
    config = load(
        tmp_path,
        '[runtime]\ndrain_timeout = "1m30s"\n[limits]\npayload = "512KiB"\noutput = "2MB"\n'
        + TASK
        + 'retry = {min_timeout = "250ms", max_timeout = "1h"}\nmax_duration = "2h"\n',
    )

    assert config.runtime.drain_timeout == 90.0
    assert config.limits.payload == 512 * 1024
    assert config.limits.output == 2_000_000
    assert config.tasks[0].retry.min_timeout == 0.25
    assert config.tasks[0].retry.max_timeout == 3600.0
    assert config.tasks[0].max_duration == 7200.0


def test_config_is_frozen(tmp_path):
    """Nobody changes a config after it was checked."""
    config = load(tmp_path, TASK)

    with pytest.raises(dataclasses.FrozenInstanceError):
        config.runtime.workers = 3  # type: ignore[misc]


def test_origins_are_spelled_as_browsers_do(tmp_path):
    """Large letters, a slash at the end and the scheme's own port go; another port stays."""
    text = (
        '[gateway]\nallow_origins = ["HTTPS://App.Test:443/", "http://[::1]:80", "http://x:81"]\n'
    )

    config = load(tmp_path, text + TASK)

    assert config.gateway.allow_origins == ("https://app.test", "http://[::1]", "http://x:81")


def test_variables_override_the_file(tmp_path):
    """`TD_RUNTIME_<SECTION>__<KEY>` wins over the file and is read as the key's type."""
    config = load(
        tmp_path,
        "[runtime]\nworkers = 2\n[gateway]\nallow_other_interfaces = false\n",
        {
            "TD_RUNTIME_RUNTIME__WORKERS": "8",
            "TD_RUNTIME_LOG__LEVEL": "debug",
            "TD_RUNTIME_GATEWAY__ALLOW_OTHER_INTERFACES": "true",
            "TD_RUNTIME_GATEWAY__LISTEN": "0.0.0.0:8080",
            "TD_RUNTIME_GATEWAY__ALLOW_ORIGINS": "https://a.test, http://b.test:3000",
            "TD_RUNTIME_CREDENTIALS__DIR": "/var/cache/td",
            "TD_RUNTIME_CONFIG": "elsewhere.toml",
        },
    )

    assert config.runtime.workers == 8
    assert config.log.level == "debug"
    assert str(config.gateway.listen) == "0.0.0.0:8080"
    assert config.gateway.allow_origins == ("https://a.test", "http://b.test:3000")
    assert config.credentials.dir == Path("/var/cache/td")


def test_secret_from_a_variable(tmp_path):
    """`{env}` is resolved, and the variable is reported so that it can be taken out of the way."""
    text = '[control_plane]\nurl = "https://x.test/"\nsecret_key = {env = "MY_KEY"}\n'
    config = load(tmp_path, text, {"MY_KEY": "tr_secret_1"})

    assert config.control_plane.url == "https://x.test"
    assert config.control_plane.secret_key == Secret("tr_secret_1")
    assert config.secret_variables == {"MY_KEY"}


def test_secret_from_a_file(tmp_path):
    """`{file}` is resolved from the config's folder and stripped of its newline."""
    (tmp_path / "key.txt").write_text("tr_secret_2\n")
    text = '[control_plane]\nurl = "https://x.test"\nsecret_key = {file = "key.txt"}\n'

    assert load(tmp_path, text).control_plane.secret_key == Secret("tr_secret_2")


def test_secret_never_shows(tmp_path):
    """No rendering of a config contains the secret key."""
    text = '[control_plane]\nurl = "https://x.test"\nsecret_key = "tr_secret_3"\n'
    config = load(tmp_path, text)

    assert "tr_secret_3" not in f"{config} {config!r} {config.log_context()}"
    assert "tr_secret_3" not in f"{config.control_plane.secret_key}"


def test_trigger_variables_fill_in_what_the_file_leaves_out(tmp_path):
    """The variables of Trigger.dev's own tools give URL and key when nobody else does."""
    env = {"TRIGGER_API_URL": "https://cloud.test", "TRIGGER_SECRET_KEY": "tr_secret_4"}
    config = load(tmp_path, TASK, env)

    assert config.control_plane.url == "https://cloud.test"
    assert config.control_plane.secret_key == Secret("tr_secret_4")
    assert config.secret_variables == {"TRIGGER_SECRET_KEY"}


def test_an_embedded_control_plane_takes_no_key_from_the_shell(tmp_path):
    """A file that says "embedded" is not moved, or locked out, by variables left in a shell."""
    env = {"TRIGGER_API_URL": "https://cloud.test", "TRIGGER_SECRET_KEY": "tr_secret_4"}
    config = load(tmp_path, '[control_plane]\nurl = "embedded"\n', env)

    assert config.control_plane.is_embedded
    assert config.control_plane.secret_key is None


def test_the_runtime_is_not_its_own_remote_control_plane(tmp_path):
    """In a shell that evaluated `td-runtime env` the same config still means embedded."""
    (tmp_path / ".td-runtime").mkdir()
    (tmp_path / ".td-runtime" / "port").write_text("4321\n")
    env = {"TRIGGER_API_URL": "http://127.0.0.1:4321", "TRIGGER_SECRET_KEY": "tr_secret_6"}
    other = {**env, "TRIGGER_API_URL": "http://127.0.0.1:4322"}

    assert load(tmp_path, TASK, env) == load(tmp_path, TASK)
    assert load(tmp_path, TASK, other).control_plane.url == "http://127.0.0.1:4322"


# What a broken file is told: key path, value, rule or nearest name

BROKEN = {
    "wrong type": ('[runtime]\nworkers = "four"\n', ['runtime.workers = "four"', "whole number"]),
    "true is no number": ("[runtime]\nworkers = true\n", ["runtime.workers = true", "1 to 1024"]),
    "out of range": ("[runtime]\nconcurrency = 0\n", ["runtime.concurrency = 0", "1 to 10000"]),
    "unknown key": (
        "[runtime]\nworker = 4\n",
        ["runtime.worker = 4", "is not a key", 'did you mean "runtime.workers"?'],
    ),
    "key of another table": (
        "[log]\nconcurrency = 4\n",
        ["log.concurrency = 4", 'did you mean "runtime.concurrency"?'],
    ),
    "unknown table": ("[runtimes]\nworkers = 4\n", ['runtimes = {"workers": 4}', '"runtime"?']),
    "bare number for a duration": (
        "[runtime]\ndrain_timeout = 30\n",
        ["runtime.drain_timeout = 30", 'such as "250ms", "30s"'],
    ),
    "unknown unit": (
        '[runtime]\ndrain_timeout = "30 seconds"\n',
        ['runtime.drain_timeout = "30 seconds"', "a duration from 0s to 1d"],
    ),
    "duration too long": (
        '[credentials]\nmax_age = "2d"\n',
        ['credentials.max_age = "2d"', "a duration from 1m to 1d"],
    ),
    "bad size": ('[limits]\npayload = "10 megs"\n', ['limits.payload = "10 megs"', '"512MiB"']),
    "wrong word": (
        '[log]\nlevel = "inf"\n',
        ['log.level = "inf"', 'one of "debug"', 'did you mean "info"?'],
    ),
    "table written as a value": ("log = 5\n", ["log = 5", "write [log] above its keys"]),
    "bad URL": (
        '[control_plane]\nurl = "api.trigger.dev"\n',
        ['control_plane.url = "api.trigger.dev"', '"https://api.trigger.dev"'],
    ),
    "URL without a key": (
        '[control_plane]\nurl = "https://x.test"\n',
        ["control_plane.secret_key: is missing", '"https://x.test"', "TRIGGER_SECRET_KEY"],
    ),
    "secret of an unset variable": (
        '[control_plane]\nsecret_key = {env = "NOT_SET"}\n',
        ['control_plane.secret_key = {"env": "NOT_SET"}', "NOT_SET, which is not set"],
    ),
    "secret of a missing file": (
        '[control_plane]\nsecret_key = {file = "no.txt"}\n',
        ["control_plane.secret_key", "no.txt", "No such file"],
    ),
    "bad listen": ('[gateway]\nlisten = "8080"\n', ['gateway.listen = "8080"', '"HOST:PORT"']),
    "origins no list": (
        '[gateway]\nallow_origins = "https://app.example"\n',
        ["gateway.allow_origins", "a list of origins"],
    ),
    "origin with a path": (
        '[gateway]\nallow_origins = ["https://app.example/chat"]\n',
        ["gateway.allow_origins", "without credentials, path"],
    ),
    "origin of no page": (
        '[gateway]\nallow_origins = ["*"]\n',
        ["gateway.allow_origins", "a list of origins"],
    ),
    "port too large": ('[gateway]\nlisten = "[::1]:70000"\n', ['"[::1]:70000"', "0 to 65535"]),
    "open to others": (
        '[gateway]\nlisten = "0.0.0.0:80"\n',
        ['gateway.listen = "0.0.0.0:80"', "gateway.allow_other_interfaces = true"],
    ),
    "one bracket": ('[tasks]\nid = "x"\n', ["tasks = ", "write [[tasks]], two brackets"]),
    "malformed entrypoint": (
        '[[tasks]]\nid = "book"\nentrypoint = "tasks.book"\n',
        ['tasks[0].entrypoint (task "book") = "tasks.book"', '"module:function"'],
    ),
    "missing entrypoint": (
        '[[tasks]]\nid = "book"\n',
        ['tasks[0].entrypoint (task "book"): is missing'],
    ),
    "bad task id": (
        '[[tasks]]\nid = "my book"\nentrypoint = "tasks:book"\n',
        ['tasks[0].id (task "my book") = "my book"', "1 to 128 letters"],
    ),
    "duplicate id": (
        TASK + TASK,
        ['tasks[1].id = "book"', "is already the id of tasks[0]"],
    ),
    "no attempts": (
        TASK + "retry = {max_attempts = 0}\n",
        ['tasks[0].retry.max_attempts (task "book") = 0', "1 to 1000"],
    ),
    "misspelled retry key": (
        TASK + "retry = {max_atempts = 2}\n",
        [
            'tasks[0].retry.max_atempts (task "book") = 2',
            'did you mean "tasks[0].retry.max_attempts"?',
        ],
    ),
    "retry bounds crossed": (
        TASK + 'retry = {min_timeout = "2m"}\n',
        ['tasks[0].retry.min_timeout (task "book") = "2m"', "must not exceed max_timeout"],
    ),
}


@pytest.mark.parametrize(("text", "parts"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_file(tmp_path, text, parts):
    """Each broken file gets one line that names the file, the key path, the value and the rule."""
    (problem,) = problems_of(tmp_path, text)

    assert problem.startswith(f"{tmp_path / 'td-runtime.toml'}: ")
    for part in parts:
        assert part in problem


def test_every_problem_is_reported_at_once(tmp_path):
    """One look at the message is enough to correct the whole file."""
    problems = problems_of(
        tmp_path,
        '[runtime]\nworkers = 0\n[log]\nlevel = "loud"\n' + TASK + "max_crashes = -1\n" + TASK,
    )

    assert [problem.split(": ")[1].split(" = ")[0] for problem in problems] == [
        "runtime.workers",
        "log.level",
        'tasks[0].max_crashes (task "book")',
        "tasks[1].id",
    ]


def test_a_loop_has_neither_schedule_nor_expiry(tmp_path):
    """It is kept alive for ever: a key that would never act is a misunderstanding."""
    text = TASK + 'replicas = 2\ncron = "0 * * * *"\nttl = "1h"\n'

    cron, ttl = problems_of(tmp_path, text)

    says = ": is not for a loop, and replicas = 2 makes it one"
    assert cron.endswith('tasks[0].cron (task "book") = "0 * * * *"' + says)
    assert ttl.endswith('tasks[0].ttl (task "book") = "1h"' + says)


def test_loops_leave_a_place_to_other_tasks(tmp_path):
    """Replicas that take every place are refused: no other run would ever start."""
    head = "[runtime]\nworkers = 1\nconcurrency = 2\n"
    other = '[[tasks]]\nid = "other"\nentrypoint = "tasks:other"\n'

    assert load(tmp_path, head + TASK + "replicas = 2\n").tasks[0].replicas == 2
    (problem,) = problems_of(tmp_path, head + TASK + "replicas = 2\n" + other)
    assert "the loops keep 2 replicas, and there are 2 places" in problem


def test_the_error_reads_well(tmp_path):
    """The rendered error has the problems, the place and what to do next."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "[runtime]\nworkers = 0\n")
    lines = str(caught.value).splitlines()

    assert lines[0].endswith("runtime.workers = 0: must be a whole number from 1 to 1024")
    assert lines[1] == f"  at: {tmp_path / 'td-runtime.toml'}"
    assert lines[2].startswith("  next: correct it")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("[runtime]\nworkers = four\n", ":2:11: Invalid value"),
        ("[runtime]\nworkers = 1\nworkers = 2\n", ":3:12: Cannot overwrite a value"),
        ('[log]\nlevel = "info', ":2:14: Unterminated string"),
        ("a = " + "[" * 5000, ":1:1: Arrays are nested too deeply"),
    ],
    ids=["bare word", "twice", "end of file", "too deep"],
)
def test_a_file_that_is_not_toml(tmp_path, text, place):
    """A syntax error names file, line and column."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)

    assert f"{tmp_path / 'td-runtime.toml'}{place}" in str(caught.value)


def test_a_file_that_is_not_text(tmp_path):
    """Bytes that are not UTF-8 are told with their line."""
    path = tmp_path / "td-runtime.toml"
    path.write_bytes(b"[log]\nlevel = '\xff'\n")

    with pytest.raises(ConfigError, match=re.escape(f"{path}:2: is not UTF-8 text")):
        load_config(path, {})


def test_wrong_override_names_the_variable(tmp_path):
    """A bad value of a variable is not blamed on the file."""
    (problem,) = problems_of(tmp_path, "", {"TD_RUNTIME_RUNTIME__WORKERS": "lots"})

    assert problem.startswith("environment variable TD_RUNTIME_RUNTIME__WORKERS: ")
    assert 'runtime.workers = "lots": must be a whole number' in problem


def test_unknown_variable(tmp_path):
    """A misspelled variable is an error with the nearest one, not silence."""
    (problem,) = problems_of(tmp_path, "", {"TD_RUNTIME_LOG__LEVL": "debug"})

    assert problem == (
        'environment variable TD_RUNTIME_LOG__LEVL = "debug": names no setting; '
        'did you mean "TD_RUNTIME_LOG__LEVEL"?'
    )


@pytest.mark.parametrize(
    "text",
    [
        '[control_plane]\nsecret_kye = "tr_secret_5"\n',
        '[control_plane]\nsecret_key = ["tr_secret_5"]\n',
        '[control_plane]\nurl = "https://me:tr_secret_5@x.test"\n',
        '[control_plane]\nsecret_key = {value = "tr_secret_5"}\n',
        'control_plane = "tr_secret_5"\n[runtime]\nsecret = "tr_secret_5"\n',
        '[control_plan]\nsecret_key = "tr_secret_5"\n',
    ],
    ids=["misspelled", "list", "in the URL", "unknown reference", "elsewhere", "other table"],
)
def test_messages_hide_secrets(tmp_path, text):
    """A secret in the wrong place is not repeated by the message about it."""
    problems = problems_of(tmp_path, text)

    assert problems
    assert "tr_secret_5" not in "\n".join(problems)


# Which file


def test_find_prefers_what_was_asked_for(tmp_path, monkeypatch):
    """-c wins over the working folder, and that over the variable."""
    here, other = tmp_path / "here", tmp_path / "other"
    here.mkdir()
    other.mkdir()
    explicit, named = write(other, ""), {"TD_RUNTIME_CONFIG": str(other / "td-runtime.toml")}
    monkeypatch.chdir(here)

    assert find_config(None, env=named) == explicit
    local = write(here, "")
    assert find_config(None, env=named) == local
    assert find_config(explicit, env={}) == explicit


def test_find_says_what_was_tried(tmp_path, monkeypatch):
    """Without a file the error names what was looked for and how to make one."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        find_config(None, env={})

    assert str(tmp_path / "td-runtime.toml") in str(caught.value)
    assert "[[tasks]]" in str(caught.value)


@pytest.mark.parametrize("how", ["-c", "TD_RUNTIME_CONFIG"])
def test_find_refuses_a_file_that_is_not_there(tmp_path, monkeypatch, how):
    """A file that was named must exist; nothing else is taken instead."""
    monkeypatch.chdir(tmp_path)
    missing = tmp_path / "no.toml"
    explicit = missing if how == "-c" else None
    with pytest.raises(ConfigError, match=re.escape(f"{missing}: no such file")) as caught:
        find_config(explicit, env={"TD_RUNTIME_CONFIG": str(missing)})

    assert how in str(caught.value)


# The files we ship, and the page


@pytest.mark.parametrize("name", ["quickstart", "production"])
def test_shipped_configs_are_valid(name):
    """Every config in `configs/` loads, and its entrypoints' modules lie beside it."""
    path = ROOT / "configs" / name / "td-runtime.toml"
    config = load_config(path, {})

    assert config.tasks
    for task in config.tasks:
        module, _, function = task.entrypoint.partition(":")
        source = (path.parent / f"{module.replace('.', '/')}.py").read_text("utf-8")
        assert re.search(rf"def {function}\(", source)


def test_production_config_shows_the_defaults(tmp_path):
    """What the annotated file says is what leaving it out means."""
    text = (ROOT / "configs" / "production" / "td-runtime.toml").read_text("utf-8")
    shown = load(tmp_path, text)
    plain = load(tmp_path, '[[tasks]]\nid = "summarize"\nentrypoint = "tasks:summarize"\n')

    assert shown == plain


def test_production_config_has_every_key():
    """No key is missing from the annotated file."""
    text = (ROOT / "configs" / "production" / "td-runtime.toml").read_text("utf-8")
    live = tomllib.loads(re.sub(r"(?m)^# (\w+ = )", r"\1", text))
    keys = {f"{table}.{key}" for table in SECTIONS for key in live[table]}
    keys |= {f"tasks.{key}" for key in live["tasks"][0] if key != "retry"}
    keys |= {f"tasks.retry.{key}" for key in live["tasks"][0]["retry"]}

    assert keys == set(list_keys())


def read_reference() -> dict[str, str]:
    """Key paths of the page's tables, each with the default it gives."""
    found: dict[str, str] = {}
    table = ""
    for line in REFERENCE.read_text("utf-8").splitlines():
        if heading := re.fullmatch(r"## `\[+([a-z_.]+)\]+`", line):
            table = heading[1]
        elif table and (row := re.fullmatch(r"\| `(\w+)` \|[^|]*\| ([^|]*) \|[^|]*\|", line)):
            found[f"{table}.{row[1]}"] = row[2]

    return found


def test_reference_has_every_key():
    """The page lists exactly the keys there are."""
    assert set(read_reference()) == set(list_keys())


def test_reference_gives_the_defaults(tmp_path):
    """A file made of the page's defaults means the same as an empty one."""
    text = ""
    for path, default in read_reference().items():
        table, _, key = path.rpartition(".")
        value = re.fullmatch(r"`(.*)`", default)
        if value and not table.startswith("tasks"):
            text += f"{table}.{key} = {value[1]}\n"

    assert load(tmp_path, text) == load(tmp_path, "")
