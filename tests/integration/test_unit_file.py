"""The unit file for systemd, held against the production config and against systemd itself."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from td_runtime.config import load_config
from td_runtime.errors import ExitCode

PRODUCTION = Path(__file__).parents[2] / "configs" / "production"
UNIT = PRODUCTION / "td-runtime.service"
#: Seconds beyond drain_timeout that an orderly stop may take: docs/concepts/processes.md.
STOP = 7 + 2 + 3 + 10
SECONDS = {"s": 1, "min": 60}


def settings() -> dict[str, list[str]]:
    """Every value of every setting, in order."""
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text("utf-8").splitlines():
        if line and line[0] not in "#[":
            name, is_setting, value = line.partition("=")
            assert is_setting, line
            found.setdefault(name, []).append(value)

    return found


def seconds(text: str) -> int:
    match = re.fullmatch(r"(\d+)(s|min)", text)
    assert match is not None, text

    return int(match[1]) * SECONDS[match[2]]


def test_systemd_waits_for_a_whole_drain() -> None:
    """TimeoutStopSec is longer than drain_timeout and all that a stop may take beyond it."""
    config = load_config(PRODUCTION / "td-runtime.toml", env={})
    (stop,) = settings()["TimeoutStopSec"]

    assert seconds(stop) > config.runtime.drain_timeout + STOP
    assert settings()["KillMode"] == ["mixed"]


def test_systemd_starts_again_what_a_start_may_cure() -> None:
    """The codes that say somebody has to look are the ones that prevent a restart."""
    hopeless = {ExitCode.USAGE, ExitCode.CONFIG, ExitCode.TASK_IMPORT, ExitCode.ALREADY_RUNNING}
    (codes,) = settings()["RestartPreventExitStatus"]

    assert {int(code) for code in codes.split()} == {int(code) for code in hopeless}
    assert settings()["Restart"] == ["on-failure"]


def test_overrides_in_the_unit_are_keys_of_the_config() -> None:
    """What `Environment=` sets is understood."""
    env = dict(each.split("=", 1) for each in settings()["Environment"])
    config = load_config(PRODUCTION / "td-runtime.toml", env=env)

    assert str(config.runtime.data_dir) == "/var/lib/td-runtime/data"
    assert str(config.credentials.dir) == "/var/cache/td-runtime/credentials"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    """`systemd-analyze verify` has nothing to say of it, with a program that is there."""
    unit = tmp_path / UNIT.name
    text = re.sub(r"ExecStart=\S+", "ExecStart=/bin/true", UNIT.read_text("utf-8"))
    version = subprocess.run(["systemctl", "--version"], capture_output=True, text=True).stdout
    if int(version.split()[1].split(".")[0]) < 253:
        text = text.replace("Type=notify-reload", "Type=notify")
    # Other units of this host, and its lack of a user, are not what is looked at.
    unit.write_text(re.sub(r"(?m)^(User|Group|Wants|After)=.*\n", "", text))
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--generators=no", str(unit)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    about = [line for line in verified.stderr.splitlines() if UNIT.name in line]
    assert about == []
