from __future__ import annotations

import pickle

import pytest

from td_sharedcache.errors import MintError
from td_worker.errors import (
    ChatChunkTooLargeError,
    ControlPlaneBusyError,
    ControlPlaneError,
    ControlPlaneRefusedError,
    StreamReadError,
    StreamStoreBusyError,
    StreamWriteError,
    TdWorkerError,
)

ERRORS = [
    ChatChunkTooLargeError(2_000_000, 1_047_552, "text"),
    StreamWriteError("run/r/k", acked=3, unacked=2, reason="the budget is spent"),
    StreamReadError("r", "k", status=404, reason="unknown"),
    StreamStoreBusyError("busy", status=503, code="unavailable", retry_after=1.5),
    ControlPlaneBusyError("busy", status=503, retryable=True, retry_after=2.0),
    ControlPlaneRefusedError("no", status=404),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_errors_survive_pickling_with_their_facts(error):
    """An error that crosses a process has the same type, text and attributes there."""
    there = pickle.loads(pickle.dumps(error))

    assert type(there) is type(error)
    assert str(there) == str(error)
    assert vars(there) == vars(error)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_errors_have_one_root(error):
    """`except TdWorkerError` catches whatever td_worker raises on purpose."""
    assert isinstance(error, TdWorkerError)


def test_the_cache_knows_the_control_planes_errors():
    """A control-plane error is a mint error: the cache shares it with all that wait."""
    assert issubclass(ControlPlaneError, MintError)


def test_a_write_error_says_what_is_durable():
    """The text has the slot, what was acked, what was not, and why."""
    assert str(ERRORS[1]) == (
        "stream run/r/k: 3 records acked, 2 not acked and given up: the budget is spent"
    )
