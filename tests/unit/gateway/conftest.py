from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from td_runtime.gateway.platform.storage import Storage
from td_runtime.gateway.platform.streams import Streams


@pytest.fixture
async def storage(tmp_path: Path) -> AsyncIterator[Storage]:
    opened = Storage.open(str(tmp_path / "platform.db"))
    yield opened
    opened.close()


@pytest.fixture
async def streams(storage: Storage) -> AsyncIterator[Streams]:
    opened = Streams(storage)
    yield opened
    opened.close()
