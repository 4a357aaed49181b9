"""The environment that the official Python client lives in; td-runtime is not in it.

`python -m tests.interop.s2_python.environment` makes it, exactly as requirements.txt says.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
FOLDER = Path(__file__).parents[3] / ".venv" / "s2"
PYTHON = FOLDER / "bin" / "python"
_MADE = FOLDER / ".made"


def make() -> Path:
    """Return the environment's Python, after making it if it is not as the file says.

    Raises:
        RuntimeError: pip failed; the message is what it printed.
    """
    wanted = f"{REQUIREMENTS.read_text()}{sys.version}"
    if _MADE.exists() and _MADE.read_text() == wanted:
        return PYTHON

    _run(sys.executable, "-m", "venv", "--clear", str(FOLDER))
    _run(str(PYTHON), "-m", "pip", "install", "-qq", "--no-deps", "-r", str(REQUIREMENTS))
    _MADE.write_text(wanted)

    return PYTHON


def _run(*command: str) -> None:
    environment = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed ({done.returncode}):\n{done.stderr}")


if __name__ == "__main__":
    make()
