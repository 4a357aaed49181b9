"""What the light commands must not import: each would be felt at every call of the command line."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from td_runtime.cli.app import COMMANDS, make_app, make_outline
from td_runtime.store import open_store

HEAVY = {"aiohttp", "asyncio", "cryptography", "httpx", "rich", "sqlite3", "starlette", "structlog"}
NOT_NEEDED = {*HEAVY, "_hashlib", "importlib.metadata", "td_sharedcache", "td_worker.errors"}
CALLED = """
import sys
from td_runtime.cli import main
sys.argv = ["td-runtime", *sys.argv[1:]]
try:
    main()
finally:
    print("loaded", *sys.modules)
"""


def _loaded_by(*arguments: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", CALLED, *arguments], capture_output=True, check=False
    )

    return set(done.stdout.decode().rpartition("loaded")[2].split())


def _write_config(folder: Path) -> str:
    path = folder / "td-runtime.toml"
    path.write_text('[runtime]\ndata_dir = "data"\n\n[[tasks]]\nid = "t"\nentrypoint = "tasks:t"\n')

    return str(path)


async def _make_store(path: Path) -> None:
    async with open_store(path):
        pass


def test_the_command_line_loads_nothing_heavy() -> None:
    """Loading all commands imports no HTTP client, event loop, database or table renderer."""
    script = "import sys, td_runtime.cli.app; td_runtime.cli.app.make_app(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)

    assert HEAVY & set(loaded.stdout.decode().split()) == set()


@pytest.mark.parametrize("command", ["stop", "drain", "status", "trigger t", "runs cancel x"])
def test_asking_the_supervisor_loads_the_messages_and_no_more(command: str, tmp_path: Path) -> None:
    """Commands that send one message have neither task authors' errors nor the credential cache."""
    loaded = _loaded_by(*command.split(), "--config", _write_config(tmp_path))

    assert "td_runtime.control" in loaded
    assert NOT_NEEDED & loaded == set()


@pytest.mark.parametrize("command", ["runs list", "tasks list"])
def test_listing_loads_the_store_without_extras(command: str, tmp_path: Path) -> None:
    """What reads the run store loads what the store is made of, and no table renderer in a pipe."""
    (tmp_path / "data").mkdir(mode=0o700)
    asyncio.run(_make_store(tmp_path / "data/runs.db"))
    loaded = _loaded_by(*command.split(), "--config", _write_config(tmp_path))

    assert "sqlite3" in loaded
    assert {"rich", "aiohttp", "httpx", "cryptography", "td_sharedcache"} & loaded == set()


def test_the_version_loads_no_command() -> None:
    """It is asked for by scripts, and needs neither a config nor what a wheel says of itself."""
    loaded = _loaded_by("--version")

    assert {*NOT_NEEDED, "msgspec", "td_runtime.cli.options", "td_runtime.config"} & loaded == set()


def test_the_help_loads_no_command() -> None:
    """Names and purposes of all commands are known without any of them."""
    assert {"msgspec", "td_runtime.cli.options", "td_runtime.config"} & _loaded_by(
        "--help"
    ) == set()


def test_the_outline_says_what_the_commands_say() -> None:
    """The help of all commands and each one's own begin with the same sentence."""
    whole, outline = (typer.main.get_command(app) for app in (make_app(), make_outline()))

    assert list(whole.commands) == list(outline.commands) == list(COMMANDS)  # type: ignore[attr-defined]
    for name, command in whole.commands.items():  # type: ignore[attr-defined]
        purpose = inspect.cleandoc(command.help).partition("\n\n")[0].replace("\n", " ")
        assert outline.commands[name].help == purpose  # type: ignore[attr-defined]
