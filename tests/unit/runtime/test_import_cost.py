"""What the light commands must not import: each would be felt at every call of the command line."""

from __future__ import annotations

import subprocess
import sys

HEAVY = {"aiohttp", "asyncio", "cryptography", "httpx", "rich", "sqlite3", "starlette", "structlog"}


def test_the_command_line_loads_nothing_heavy() -> None:
    """Loading all commands imports no HTTP client, event loop, database or table renderer."""
    script = "import sys, td_runtime.cli.app; td_runtime.cli.app.make_app(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)

    assert HEAVY & set(loaded.stdout.decode().split()) == set()
