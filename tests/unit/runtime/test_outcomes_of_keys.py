"""What `trigger` prints of a run that an idempotency key has led to."""

from __future__ import annotations

import msgspec
import pytest

from td_runtime.cli.outcomes import accepted_documents
from td_runtime.control import Accepted, ControlRefusedError


class Client:
    """A supervisor that refuses to tell of any run."""

    def __init__(self, code: str) -> None:
        self.code = code

    def ask(self, _request: msgspec.Struct, _kind: type) -> object:
        raise ControlRefusedError("no", code=self.code)


def test_a_run_that_its_key_has_outlived_is_no_error() -> None:
    """The run was accepted and has ended, whenever that was: the answer has its id."""
    accepted = Accepted(run_ids=["run_x"], created=[False])

    (document,) = accepted_documents(Client("unknown_run"), accepted)  # type: ignore[arg-type]

    assert (document["run_id"], document["status"]) == ("run_x", "DELETED")
    with pytest.raises(ControlRefusedError):
        accepted_documents(Client("invalid"), accepted)  # type: ignore[arg-type]
