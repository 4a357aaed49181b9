"""What the command line has, the documentation has, and the other way round."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.main

from td_runtime.cli.app import make_app
from td_runtime.cli.platform import FaultKind
from td_runtime.errors import ExitCode

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference" / "cli.md"
TROUBLESHOOTING = ROOT / "docs" / "troubleshooting.md"
SOURCES = [*(ROOT / "runtime").rglob("*.py"), *(ROOT / "worker").rglob("*.py")]
SOURCES += (ROOT / "sharedcache").rglob("*.py")


def _leaves(command: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each command that does something, by its full name."""
    if not hasattr(command, "commands"):
        yield name, command
        return
    for word, below in command.commands.items():
        yield from _leaves(below, f"{name} {word}".strip())


COMMANDS = dict(_leaves(typer.main.get_command(make_app())))


def _sections() -> dict[str, str]:
    """Return what the reference says of each command."""
    parts = re.split(r"^## `(.+)`$", REFERENCE.read_text("utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_each_command_has_a_section() -> None:
    """The reference has one section for each command, in the order of the help."""
    assert sorted(_sections()) == sorted(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_option_and_argument_is_documented(name: str) -> None:
    """A command's section names each of its options and arguments, and no option it has not."""
    section = _sections()[name]
    parameters = [p for p in COMMANDS[name].params if not getattr(p, "hidden", False)]
    options = {word for p in parameters for word in p.opts if word.startswith("--")}
    arguments = {
        str(p.metavar or p.name).strip("[].").upper()
        for p in parameters
        if not p.opts[0].startswith("-")
    }

    assert options - {"--config", "--help"} <= set(re.findall(r"--[a-z-]+", section))
    usage = section.split("```")[1].splitlines()[1]
    assert set(re.findall(r"--[a-z-]+", usage)) <= options
    assert arguments <= set(re.findall(r"\b[A-Z]+\b", usage))


def test_options_of_all_commands_are_documented() -> None:
    """The reference's opening names what every command, or td-runtime itself, takes."""
    opening = REFERENCE.read_text("utf-8").split("\n## ")[0]
    top = {word for p in typer.main.get_command(make_app()).params for word in p.opts}

    assert {word for word in top | {"--config", "-c", "-h"} if f"`{word}" not in opening} == set()


def test_each_exit_code_is_documented_by_its_sentence() -> None:
    """The table of exit codes has each code with the sentence that `--help` has."""
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", REFERENCE.read_text("utf-8"), flags=re.MULTILINE)

    assert rows == [(str(int(code)), code.description) for code in ExitCode]


def test_each_fault_is_documented() -> None:
    """The table of faults has each kind once."""
    rows = re.findall(r"^\| `([a-z-]+)` \|", _sections()["platform fault"], flags=re.MULTILINE)

    assert sorted(rows) == sorted(FaultKind)


def _quoted() -> list[str]:
    """Return each message that the troubleshooting page explains."""
    headings = re.findall(
        r"^\*\*.+?\*\*(?:, \*\*.+?\*\*)*", TROUBLESHOOTING.read_text("utf-8"), re.MULTILINE
    )
    return [message for line in headings for message in re.findall(r"\*\*`(.+?)`\*\*", line)]


@cache
def _source() -> str:
    """Return the source with its string literals joined and their values left open."""
    text = "\n".join(path.read_text("utf-8") for path in SOURCES)
    joined = re.sub(r"[\"']\s*\n\s*f?[\"']", "", text)
    return re.sub(r"\{[^{}]*\}", "\u2026", joined)


@pytest.mark.parametrize("message", _quoted())
def test_each_message_that_is_explained_exists(message: str) -> None:
    """What the troubleshooting page quotes is what the code says, but for what varies."""
    source = _source()
    fixed = [part.strip(" '`:;=(),.") for part in message.split("\u2026")]
    words = [part for part in fixed if part]

    assert [part for part in words if part not in source] == []
