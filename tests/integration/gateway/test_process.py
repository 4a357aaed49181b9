from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from tests.gateway_process import GatewayProcess, start_gateway
from tests.integration.gateway.client import mint, put


def run_with(document: object, **more: object) -> subprocess.CompletedProcess[bytes]:
    content = document if isinstance(document, bytes) else json.dumps(document).encode()
    done: subprocess.CompletedProcess[bytes] = subprocess.run(
        [sys.executable, "-m", "td_runtime.gateway"],
        input=content,
        capture_output=True,
        timeout=60,
        check=False,
        **more,  # type: ignore[call-overload]
    )
    return done


def was_clean(gateway: GatewayProcess) -> bool:
    last = gateway.events[-1]
    assert last["event"] == "gateway.stopped"
    return bool(last["is_clean"])


def settings(data_dir: Path, port: int, control_fd: int) -> dict[str, object]:
    return {
        "data_dir": str(data_dir),
        "host": "127.0.0.1",
        "port": port,
        "secret_key": "key-that-must-not-be-shown",
        "control_fd": control_fd,
        "log": {"format": "json", "level": "info", "fd": None},
    }


def test_sigterm_ends_it_with_code_0(own_gateway: GatewayProcess) -> None:
    """SIGTERM is a normal end."""
    assert own_gateway.stop() == 0


def test_it_ends_with_its_supervisor(own_gateway: GatewayProcess) -> None:
    """When the control descriptor's other end is closed the gateway ends by itself."""
    assert own_gateway.disown() == 0


def test_an_open_read_does_not_hold_up_the_end(own_gateway: GatewayProcess) -> None:
    """With a reader attached the end is as clean as without."""
    stream = mint(own_gateway, "open")
    headers = {**stream.headers, **own_gateway.headers, "accept": "text/event-stream"}

    with httpx.stream("GET", f"{stream.url}/records?wait=600", headers=headers, timeout=30):
        assert own_gateway.disown() == 0

    assert was_clean(own_gateway)


def test_a_stuck_request_is_left_behind(own_gateway: GatewayProcess) -> None:
    """A request that does not finish is given up after the grace time; the exit is still 0."""
    own_gateway.fault(kind="delay", seconds=300, target="control-plane")
    with socket.create_connection(("127.0.0.1", own_gateway.port), timeout=30) as connection:
        connection.sendall(
            b"PUT /realtime/v1/streams/run_1/self/stuck HTTP/1.1\r\n"
            b"host: 127.0.0.1:%d\r\n\r\n" % own_gateway.port
        )
        while not own_gateway.stats()["puts"]:
            pass
        code = own_gateway.stop()

    assert code == 0
    assert not was_clean(own_gateway)


def test_sigint_is_the_supervisors_business(own_gateway: GatewayProcess) -> None:
    """Ctrl-C in the terminal reaches every process; the gateway goes on until it is told."""
    os.kill(own_gateway.pid, signal.SIGINT)

    assert mint(own_gateway, "after").append("x").status_code == 200


def test_a_store_that_cannot_be_opened_is_exit_6(tmp_path: Path) -> None:
    """A platform.db that is no database ends it with code 6 and an error that names the file."""
    (tmp_path / "platform.db").write_bytes(b"this is not a database" * 100)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        done = run_with(settings(tmp_path, 1, theirs.fileno()), pass_fds=[theirs.fileno()])

    assert done.returncode == 6
    assert str(tmp_path / "platform.db") in done.stderr.decode()
    assert "key-that-must-not-be-shown" not in done.stderr.decode()


def test_a_newer_store_is_not_touched(tmp_path: Path) -> None:
    """A file of a later schema is refused with code 6."""
    database = sqlite3.connect(tmp_path / "platform.db")
    database.execute("PRAGMA user_version = 99")
    database.close()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        done = run_with(settings(tmp_path, 1, theirs.fileno()), pass_fds=[theirs.fileno()])

    assert done.returncode == 6
    assert "newer version" in done.stderr.decode()


def test_a_port_in_use_is_exit_1(own_gateway: GatewayProcess, tmp_path: Path) -> None:
    """A second gateway on the same port says so and ends with code 1."""
    folder = tmp_path / "second"
    folder.mkdir()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        done = run_with(
            settings(folder, own_gateway.port, theirs.fileno()), pass_fds=[theirs.fileno()]
        )

    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{own_gateway.port}" in done.stderr.decode()


def test_an_unforeseen_error_is_an_answer(own_gateway: GatewayProcess) -> None:
    """What nobody foresaw is a 500 without details and an event with them; the next call works."""
    mint(own_gateway, "before")
    runs = sqlite3.connect(own_gateway.data_dir / "runs.db")
    runs.execute("ALTER TABLE runs RENAME COLUMN status TO state")
    broken = put(own_gateway, "broken")
    runs.execute("ALTER TABLE runs RENAME COLUMN state TO status")
    runs.close()
    working = put(own_gateway, "working")
    own_gateway.stop()

    assert (broken.status_code, broken.json()) == (500, {"error": "Internal Server Error"})
    assert working.status_code == 202
    (event,) = [e for e in own_gateway.events if e["event"] == "request.failed"]
    assert (event["level"], event["method"]) == ("error", "PUT")
    assert event["path"] == "/realtime/v1/streams/run_1/self/broken"
    assert "no such column" in event["error"]
    assert own_gateway.secret_key not in own_gateway.stderr


def test_a_successor_outwaits_its_predecessor(own_gateway: GatewayProcess, tmp_path: Path) -> None:
    """A gateway that finds its port taken by one that is ending gets it when that one is gone."""
    folder = tmp_path / "second"
    folder.mkdir()
    successor = GatewayProcess(folder, port=own_gateway.port)
    leaving = threading.Timer(0.5, own_gateway.stop)
    leaving.start()

    successor.start()  # not in the thread: a gateway ends with the thread that started it
    leaving.join(60)

    assert successor.stats()["puts"] == {}
    assert successor.stop() == 0


@pytest.mark.parametrize("document", [b"", b"{", {}, {"port": 0}, {"secret_key": ""}])
def test_settings_that_do_not_fit_are_exit_1(document: object) -> None:
    """Wrong settings are named in one line, without a traceback."""
    done = run_with(document)

    assert done.returncode == 1
    assert done.stderr.startswith(b"td_runtime.gateway: the settings")
    assert done.stderr.count(b"\n") == 1


def test_runs_that_come_later_are_seen(tmp_path: Path) -> None:
    """A gateway that starts before runs.db has its tables finds runs once they are there."""
    (tmp_path / "later").mkdir()
    with start_gateway(tmp_path) as gateway:
        (tmp_path / "runs.db").rename(tmp_path / "later" / "runs.db")
        before = httpx.put(
            f"{gateway.url}/realtime/v1/streams/run_x/self/out", headers=gateway.headers
        )
        (tmp_path / "later" / "runs.db").rename(tmp_path / "runs.db")
        gateway.add_run("run_x")
        after = mint(gateway, "out", run="run_x")

    assert (before.status_code, before.text) == (404, "Run not found")
    assert after.token
