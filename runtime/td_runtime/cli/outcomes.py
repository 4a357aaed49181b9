"""What commands print of runs that they have asked for, or waited for."""

import select
import time
from typing import Any

import msgspec
import typer

from td_runtime.cli.options import print_json
from td_runtime.control import (
    Accepted,
    ControlClient,
    ControlRefusedError,
    GetRun,
    NotRunningError,
    RunDetails,
    RunView,
    WaitForRun,
)
from td_runtime.errors import ExitCode, TdRuntimeError
from td_runtime.units import format_duration

__all__ = [
    "accepted_documents",
    "finish",
    "new_document",
    "outcome_of",
    "print_document",
    "print_outcome",
    "run_document",
    "wait_for",
]


def run_document(view: RunView) -> dict[str, Any]:
    """Return a run's outcome as the commands print it."""
    outcome = view.outcome

    return {
        "run_id": outcome.id,
        "status": outcome.status,
        "output": None if outcome.output is None else msgspec.Raw(outcome.output),
        "error": None if outcome.error is None else msgspec.to_builtins(outcome.error),
        "attempt": view.attempt,
        "records_lost": view.records_lost,
    }


def accepted_documents(
    client: ControlClient, accepted: Accepted, *, run_at: float | None = None
) -> list[dict[str, Any]]:
    """Return what is known of runs that were just accepted, to start at a time or at once.

    A run that an idempotency key has led to may be anywhere in its life, or be `DELETED`: a key
    holds for longer than the history may be kept.
    """
    return [
        new_document(run_id, run_at) if is_new else _look_up(client, run_id)
        for run_id, is_new in zip(accepted.run_ids, accepted.created, strict=True)
    ]


def new_document(run_id: str, run_at: float | None = None) -> dict[str, Any]:
    """Return what is known of a run that is new."""
    is_later = run_at is not None and run_at > time.time()

    return _document(run_id, "DELAYED" if is_later else "QUEUED")


def _look_up(client: ControlClient, run_id: str) -> dict[str, Any]:
    try:
        run = client.ask(GetRun(run_id=run_id), RunDetails)
    except ControlRefusedError as error:
        if error.code != "unknown_run":
            raise
        return _document(run_id, "DELETED")
    document = _document(run_id, run.status)
    if run.is_finished:
        document["output"] = None if run.output_json is None else msgspec.Raw(run.output_json)
        document["error"] = None if run.error is None else msgspec.to_builtins(run.error)

    return document


def _document(run_id: str, status: str) -> dict[str, Any]:
    return {"run_id": run_id, "status": status, "output": None, "error": None}


def wait_for(client: ControlClient, run_id: str, *, timeout: float | None = None) -> RunView:
    """Return a run once it has an outcome.

    Args:
        client: Connected to the supervisor.
        run_id: The run.
        timeout: Seconds; None waits for ever.

    Raises:
        ControlRefusedError: There is no such run.
        NotRunningError: The supervisor stopped before.
        TdRuntimeError: It has none in time.
    """
    client.send(WaitForRun(run_id=run_id))
    ready, _, _ = select.select([client], [], [], timeout)
    if not ready:
        raise TdRuntimeError(
            f"the run has not ended within {format_duration(timeout or 0)}",
            where=run_id,
            advice="It goes on: wait once more, or stop it with `td-runtime runs cancel`.",
        )
    try:
        return client.receive(RunView)
    except NotRunningError as error:
        raise NotRunningError(
            "the supervisor stopped before the run had ended",
            where=run_id,
            advice="Once it is started again the run goes on, and can be waited for again.",
        ) from error


def outcome_of(client: ControlClient, accepted: Accepted) -> dict[str, Any]:
    """Return how the one run that was just accepted ends; raises as :func:`wait_for`.

    One that a key has led to may be `DELETED`, as in :func:`accepted_documents`.
    """
    try:
        return run_document(wait_for(client, accepted.run_ids[0]))
    except ControlRefusedError as error:
        if error.code != "unknown_run" or accepted.created[0]:
            raise
        return _document(accepted.run_ids[0], "DELETED")


def finish(documents: list[dict[str, Any]]) -> None:
    """End the command by what the runs came to.

    Raises:
        typer.Exit: One of them did not complete.
    """
    if any(document["status"] != "COMPLETED" for document in documents):
        raise typer.Exit(ExitCode.FAILED)


def print_outcome(view: RunView, *, json: bool) -> None:
    """Print how a run ended, and end the command accordingly; raises as :func:`finish`."""
    document = run_document(view)
    print_document(document, json=json)
    finish([document])


def print_document(document: dict[str, Any], *, json: bool) -> None:
    """Print a run's id and status, and what it returned or failed with."""
    if json:
        print_json(document)
        return
    typer.echo(f"{document['run_id']}  {document['status']}")
    if document["output"] is not None:
        typer.echo(bytes(document["output"]).decode())
    if document["error"] is not None:
        typer.echo(f"{document['error']['type']}: {document['error']['message']}", err=True)
