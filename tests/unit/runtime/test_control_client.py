"""The client's end of the control socket, against a supervisor that dies."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from td_runtime.control import ControlClient, NotRunningError
from td_runtime.data_dir import DataDir


def test_a_supervisor_that_dies_before_its_hello_leaves_no_descriptor(tmp_path: Path) -> None:
    """The call says that nobody answers, and closes what it had opened."""
    data_dir = DataDir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(data_dir.control_socket))
        server.listen()
        thread = threading.Thread(target=lambda: server.accept()[0].close())
        # Numbers do not count: looking takes a descriptor of its own.
        before = len(os.listdir("/proc/self/fd"))
        thread.start()

        with pytest.raises(NotRunningError):
            ControlClient(data_dir)

        thread.join()
        assert len(os.listdir("/proc/self/fd")) == before
