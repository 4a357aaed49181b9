"""The how-to, run: Celery and gunicorn share one cache with a td-runtime on the same host."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import httpx
import pytest

from tests.runtime_process import PATIENCE, RuntimeProcess

HOW_TO = Path(__file__).parents[3] / "docs" / "how-to" / "share-the-cache.md"
TASKS = """
import asyncio
import os
from td_worker import streams

async def talk(payload):
    await streams.append("chat", "first")
    while not os.path.exists(payload["until"]):
        await asyncio.sleep(0.05)
    await streams.append("chat", "last")
"""
# A broker in memory needs no server, but lives in the worker's own process. The children answer
# over a pipe, one line a task. Everything else is the how-to's.
LOCAL = """
import sys, threading
from celery.signals import worker_ready
from jobs import app, tell

@app.task
def report(run_id, number):
    try:
        answer = tell(run_id, number)
    except Exception as error:
        answer = f"failed: {error!r}"
    with open("answers", "wb", buffering=0) as answers:
        answers.write(f"{answer}\\n".encode())

def ask():
    for line in sys.stdin:
        run_id, count = line.split()
        for number in range(int(count)):
            report.delay(run_id, number)

@worker_ready.connect
def start_asking(**_):
    threading.Thread(target=ask, daemon=True).start()

app.worker_main(["worker", "--pool", "prefork", "-c", "4", "--without-gossip"])
"""


def write_how_to(folder: Path) -> None:
    """Put the files that the how-to shows into a folder."""
    text = HOW_TO.read_text("utf-8")
    for name in ("chunks.py", "jobs.py", "web.py"):
        found = re.search(rf"^`{name}`.*?^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        assert found, name
        (folder / name).write_text(found[1])
    (folder / "local.py").write_text(LOCAL)
    os.mkfifo(folder / "answers")


@contextlib.contextmanager
def running(
    folder: Path, env: dict[str, str], *command: str, fds: tuple[int, ...] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a Python program as a process group of its own, and leave nothing of it behind."""
    with (folder / f"{command[-1].strip('-')}.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=folder,
            env=env,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            pass_fds=fds,
            process_group=0,
        )
    with process:
        try:
            yield process
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def gunicorn(folder: Path, env: dict[str, str], *options: str) -> Iterator[httpx.Client]:
    """Serve the how-to's application on a socket that listens from the start."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        bind = ("--bind", f"fd://{listener.fileno()}")
        command = ("-m", "gunicorn", "web:application", *bind, *options)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with (
            running(folder, env, *command, fds=(listener.fileno(),)),
            httpx.Client(base_url=url, timeout=PATIENCE, trust_env=False) as client,
        ):
            yield client


class Celery:
    """A prefork worker with four children, and somebody who asks it for work."""

    def __init__(self, stack: contextlib.ExitStack, folder: Path, env: dict[str, str]) -> None:
        self._log = folder / "local.py.log"
        # Open for writing, too, so that it has no end while no child has it open.
        self._answers = os.open(folder / "answers", os.O_RDWR)
        stack.callback(os.close, self._answers)
        worker = stack.enter_context(running(folder, env, "local.py"))
        assert worker.stdin
        self._asks: IO[bytes] = worker.stdin

    def tell(self, run: str, count: int) -> set[str]:
        """Have chunks appended by the children; returns the ids of the credentials they used."""
        self._asks.write(f"{run} {count}\n".encode())
        self._asks.flush()

        answers = b""
        while answers.count(b"\n") < count:
            ready, _, _ = select.select([self._answers], [], [], PATIENCE)
            assert ready, self._log.read_text()[-4000:]
            answers += os.read(self._answers, 65536)

        return set(answers.decode().split("\n")[:-1])


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[RuntimeProcess]:
    """A td-runtime."""
    folder = tmp_path / "runtime"
    folder.mkdir()
    with RuntimeProcess(folder, tasks=TASKS, workers=2) as runtime:
        yield runtime


@pytest.fixture
def apps(tmp_path: Path, runtime: RuntimeProcess) -> tuple[Path, dict[str, str]]:
    """The how-to's files, and the environment to run them in."""
    folder = tmp_path / "apps"
    folder.mkdir()
    write_how_to(folder)

    return folder, {
        **os.environ,
        "TRIGGER_API_URL": runtime.url,
        "TRIGGER_SECRET_KEY": runtime.secret_key,
        "CREDENTIALS_DIR": str(runtime.credentials),
        "NO_PROXY": "127.0.0.1",
        "BROKER": "memory://",
    }


def test_celery_gunicorn_and_a_td_runtime_send_one_put(
    tmp_path: Path, runtime: RuntimeProcess, apps: tuple[Path, dict[str, str]]
) -> None:
    """C1, C8: eleven processes of three programs use one credential; an eviction reaches all."""
    until = tmp_path / "until"
    with contextlib.ExitStack() as stack:
        celery = Celery(stack, *apps)
        threads = ("--worker-class", "gthread", "--threads", "4", "--workers", "2")
        webs = [
            stack.enter_context(gunicorn(*apps, "--workers", "2", "--preload")),
            stack.enter_context(gunicorn(*apps, *threads)),
        ]
        pool = stack.enter_context(ThreadPoolExecutor(16))
        run = runtime.trigger("talk", {"until": str(until)})
        runtime.event("run.started")

        asked = [pool.submit(web.get, f"/{n}?run={run}") for n in range(16) for web in webs]
        used = celery.tell(run, 16) | {each.result().raise_for_status().text for each in asked}
        (credential_id,) = used
        assert runtime.stats().puts == {f"run/{run}/chat": 1}

        gone = webs[0].get(f"/revoked?run={run}").raise_for_status().text
        assert gone == credential_id
        deadline = time.monotonic() + PATIENCE
        while credential_id in (seen := celery.tell(run, 4)):
            assert time.monotonic() < deadline, "Celery never found out"
        # Children that still hold the old one change over at their own next look.
        while len(seen := celery.tell(run, 8)) > 1:
            assert time.monotonic() < deadline, "not all of Celery found out"

        assert {webs[0].get(f"/x?run={run}").text} == seen
        until.touch()
        assert runtime.output(run) is None
        assert runtime.stats().puts == {f"run/{run}/chat": 2}
        assert runtime.find("cache.degraded") == []


def test_a_revoked_token_is_replaced_once_whoever_finds_out(
    tmp_path: Path, runtime: RuntimeProcess, apps: tuple[Path, dict[str, str]]
) -> None:
    """C3, C4: gunicorn's threads are refused together; one PUT later all of them have written."""
    until = tmp_path / "until"
    with gunicorn(*apps, "--worker-class", "gthread", "--threads", "8") as web:
        run = runtime.trigger("talk", {"until": str(until)})
        runtime.event("run.started")
        before = web.get(f"/x?run={run}").raise_for_status().text
        runtime.fault(kind="revoke-tokens", slot=f"run/{run}/chat")

        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(web.get, f"/{n}?run={run}") for n in range(8)]
            after = {each.result().raise_for_status().text for each in asked}
        until.touch()
        runtime.output(run)

    assert before not in after
    assert len(after) == 1
    assert runtime.stats().puts == {f"run/{run}/chat": 2}
