"""What `trigger` prints of a run that an idempotency key has led to."""

from __future__ import annotations

import msgspec
import pytest

from td_runtime.cli import outcomes
from td_runtime.cli.outcomes import accepted_documents, outcome_of
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


@pytest.mark.parametrize("is_new", [True, False])
def test_nobody_can_wait_for_it(monkeypatch: pytest.MonkeyPatch, is_new: bool) -> None:
    """With `--wait` it is `DELETED`, too; a new run that is not there is an error."""

    def refuse(*_: object) -> None:
        raise ControlRefusedError("there is no run", code="unknown_run")

    monkeypatch.setattr(outcomes, "wait_for", refuse)
    accepted = Accepted(run_ids=["run_x"], created=[is_new])
    client = Client("unknown_run")
    if is_new:
        with pytest.raises(ControlRefusedError):
            outcome_of(client, accepted)  # type: ignore[arg-type]
        return

    assert outcome_of(client, accepted)["status"] == "DELETED"  # type: ignore[arg-type]
