"""Fixtures for tests that fork."""

import pytest

from tests.integration.sharedcache.processes import Pipe


@pytest.fixture
def pipe():
    """Make pipes that are closed when the test is over."""
    made = []

    def make():
        made.append(Pipe())
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def caches():
    """Keep caches whose files are closed when the test is over."""
    made = []

    def keep(cache):
        made.append(cache)
        return cache

    yield keep
    for each in made:
        each.close()
