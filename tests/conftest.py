"""What tests of every kind share."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def _no_settings_of_the_user() -> Iterator[None]:
    """Run as on a machine where nobody has configured Trigger.dev or td-runtime."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("TRIGGER_", "TD_RUNTIME_"))]:
            patch.delenv(name)
        yield


@pytest.fixture(scope="session", autouse=True)
def _signals_as_on_a_terminal() -> None:
    """Let what is started here hear Ctrl-C and a hang-up, though a shell began us in background."""
    for number, handler in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGHUP, signal.SIG_DFL),
    ):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """Yield an empty private folder; `tmp_path` is too long for a Unix socket's 108 bytes."""
    with tempfile.TemporaryDirectory(prefix="td-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]

    return port
