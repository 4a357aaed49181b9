"""``td-runtime trigger``."""

from typing import Annotated, Any

import msgspec
import typer

from td_runtime.cli.options import (
    ConfigOption,
    JsonOption,
    PayloadOption,
    load,
    print_json,
    read_payload,
)
from td_runtime.config import Config
from td_runtime.control import (
    Accepted,
    ControlClient,
    ControlRefusedError,
    RunView,
    TriggerRuns,
    WaitForRun,
)
from td_runtime.data_dir import DataDir
from td_runtime.errors import ExitCode
from td_worker.messages import TriggerItem

__all__ = ["ask_for_run", "run_document", "trigger"]


def trigger(
    task: Annotated[str, typer.Argument(metavar="TASK", help="Id of the task.")],
    config: ConfigOption = None,
    payload: PayloadOption = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the run's outcome.")] = False,
    json: JsonOption = False,
) -> None:
    """Ask the running supervisor for one run of TASK."""
    loaded = load(config)
    text = read_payload(payload)
    with ControlClient(DataDir(loaded.runtime.data_dir)) as client:
        run_id = ask_for_run(client, loaded, TriggerItem(task=task, payload=text))
        if not wait:
            _print(json, {"run_id": run_id, "status": "QUEUED", "output": None, "error": None})
            return
        view = client.ask(WaitForRun(run_id=run_id), RunView)
    _print(json, run_document(view))
    if view.outcome.status != "COMPLETED":
        raise typer.Exit(ExitCode.FAILED)


def ask_for_run(client: ControlClient, config: Config, item: TriggerItem) -> str:
    """Have a run accepted; returns its id.

    Raises:
        ControlRefusedError: An unknown task, or a limit; says where the valid ones are set.
    """
    limit = config.limits.payload
    if len(item.payload) > limit:
        # Refused here: a payload that is much too large would not even fit into a message.
        raise ControlRefusedError(
            f"the payload for task {item.task!r} has {len(item.payload)} bytes; "
            f"limits.payload = {limit}",
            where=str(config.path),
            advice="Pass where the data is, not the data; or raise limits.payload.",
        )
    try:
        return client.ask(TriggerRuns(items=[item]), Accepted).run_ids[0]
    except ControlRefusedError as error:
        error.where = error.where or str(config.path)
        raise


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


def _print(json: bool, document: dict[str, Any]) -> None:
    if json:
        print_json(document)
        return
    typer.echo(f"{document['run_id']}  {document['status']}")
    if document["output"] is not None:
        typer.echo(bytes(document["output"]).decode())
    if document["error"] is not None:
        typer.echo(f"{document['error']['type']}: {document['error']['message']}", err=True)
