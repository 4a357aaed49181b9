"""What a supervisor and its workers must not load, and what then must be as ever."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

EXTRAS = {"click", "pygments", "rich"}
BEFORE_THE_GATEWAY = """
import json, sys
import td_runtime.cli.app
td_runtime.cli.app.make_app("start")
from td_runtime.start_imports import imports_without_extras
with imports_without_extras():
    import td_runtime.start
"""
ALL = f"""{BEFORE_THE_GATEWAY}
with imports_without_extras():
    import td_worker.process, td_runtime.supervisor
"""


def loaded_after(script: str) -> set[str]:
    return set(_say(f"{script}\nprint(json.dumps(list(sys.modules)))"))


def test_a_supervisor_and_its_workers_load_no_extras() -> None:
    """Neither table renderer nor command line of a library is in the memory that all share."""
    assert loaded_after(ALL) & EXTRAS == set()


def test_a_gateway_loads_no_extras() -> None:
    """Nor with its first line, for which it loads what writes it."""
    script = """
import json, sys
from td_runtime.start_imports import imports_without_extras
with imports_without_extras():
    import td_runtime.gateway.process
from td_runtime.gateway.journal import Journal
from td_runtime.gateway.settings import LogSettings
Journal(LogSettings()).prepare()
"""
    loaded = loaded_after(script)

    assert "structlog" in loaded
    assert loaded & EXTRAS == set()


def test_the_gateway_is_started_before_the_supervisor_is_imported() -> None:
    """What comes before it needs no store, no HTTP client and nothing of a worker's."""
    loaded = loaded_after(BEFORE_THE_GATEWAY)
    heavy = {
        "aiohttp",
        "cryptography",
        "dill",
        "httpx",
        "multiprocess",
        "sqlite3",
        "td_worker.task",
    }

    assert loaded & {*heavy, "td_runtime.dispatch", "td_runtime.workers"} == set()


def test_extras_can_be_imported_after_the_block() -> None:
    """Task code finds rich and click as if nothing had been."""
    script = "import rich.console, click\nprint(json.dumps([rich.__name__, click.__name__]))"

    assert _say(f"{ALL}\n{script}") == ["rich", "click"]


def test_certificates_are_read_before_the_first_connection() -> None:
    """A context made meanwhile has none at first, and those of any other one when it is used."""
    script = """
import ssl
with imports_without_extras():
    late = ssl.create_default_context()
before = late.cert_store_stats()
ends = ssl.MemoryBIO(), ssl.MemoryBIO()
late.wrap_bio(*ends, server_hostname="localhost")
usual = ssl.create_default_context()
is_usual = type(late) is type(usual) is ssl.SSLContext and late.verify_mode == usual.verify_mode
print(json.dumps([before["x509"], late.cert_store_stats() == usual.cert_store_stats(), is_usual]))
"""
    assert _say(f"{BEFORE_THE_GATEWAY}\n{script}") == [0, True, True]


def test_certificates_are_read_at_once_where_tls_is_likely() -> None:
    """Workers share what their supervisor has read."""
    script = """
import ssl
with imports_without_extras(tls_is_likely=True):
    print(json.dumps(type(ssl.create_default_context()) is ssl.SSLContext))
"""
    assert _say(f"{BEFORE_THE_GATEWAY}\n{script}") is True


def test_garbage_is_collected_after_the_block_as_before() -> None:
    """The block puts the collector back, and what was imported is not looked through again."""
    script = """
import gc
print(json.dumps([gc.isenabled(), gc.get_freeze_count() > 10_000]))
"""
    assert _say(f"{ALL}\n{script}") == [True, True]


def _say(script: str) -> Any:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)

    return json.loads(done.stdout)
