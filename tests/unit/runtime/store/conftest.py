"""A run store in a folder of its own, with a clock that the test moves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from td_runtime.store.sqlite import SqliteRunStore

START = 1_000_000.0


class Clock:
    """Seconds since the epoch, as the test says."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"


@pytest.fixture
async def store(path: Path, clock: Clock) -> AsyncIterator[SqliteRunStore]:
    async with SqliteRunStore(path, clock=clock) as store:
        yield store
