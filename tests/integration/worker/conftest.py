from __future__ import annotations

from collections.abc import Iterator

import pytest

from td_worker.context import Execution
from td_worker.testing import FakePlatform, run_platform


@pytest.fixture
def platform() -> Iterator[FakePlatform]:
    """A control plane and stream store in memory."""
    with run_platform() as platform:
        yield platform


@pytest.fixture
def execution(platform: FakePlatform) -> Iterator[Execution]:
    """The test is the code of `run_1`."""
    with platform.execution(run_id="run_1") as execution:
        yield execution
