"""Who calls as a user that may not enter the data folder: an operator without `sudo`, a web app."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from td_runtime.async_control import AsyncControl
from td_runtime.control import ControlClient, GetStatus, NotRunningError, StatusView
from td_runtime.data_dir import DataDir
from td_runtime.errors import StoreError
from td_runtime.store.sqlite_file import connect_readonly


@contextmanager
def shut_out(folder: Path) -> Iterator[None]:
    """Be a user for the block that may not enter *folder*."""
    nobody = 65534
    folder.chmod(0)
    if is_root := os.geteuid() == 0:
        os.seteuid(nobody)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        folder.chmod(0o700)


def test_a_stranger_is_not_told_that_nobody_runs(tmp_path: Path) -> None:
    """The error says that the folder may not be entered, and by whom; never to start another."""
    folder = tmp_path / "data"
    folder.mkdir()

    with shut_out(folder), pytest.raises(NotRunningError) as blocking:
        ControlClient(DataDir(folder))
    with shut_out(folder), pytest.raises(NotRunningError) as waiting:
        asyncio.run(AsyncControl(DataDir(folder), name="test").ask(GetStatus(), StatusView))

    for caught in (blocking, waiting):
        assert caught.value.what == "the data folder may not be entered: Permission denied"
        assert "as the user that owns it" in (caught.value.advice or "")


def test_a_stranger_cannot_read_the_run_store(tmp_path: Path) -> None:
    """What only reads is refused with an error, and no traceback."""
    folder = tmp_path / "data"
    folder.mkdir()

    with shut_out(folder), pytest.raises(StoreError, match="Permission denied"):
        connect_readonly(folder / "runs.db")
