"""``td-runtime runs replay``."""

from typing import Annotated

import typer

from td_runtime.cli.options import (
    ConfigOption,
    JsonOption,
    PayloadOption,
    connect,
    load,
    read_payload,
)
from td_runtime.cli.outcomes import accepted_documents, print_document, print_outcome, wait_for
from td_runtime.cli.run_ids import complete_ids, explained
from td_runtime.cli.runs.show import RunArgument
from td_runtime.control import Accepted, ReplayRun

__all__ = ["replay"]


def replay(
    run: RunArgument,
    config: ConfigOption = None,
    payload: PayloadOption = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the new run's outcome.")] = False,
    json: JsonOption = False,
) -> None:
    """Start a new run like an earlier one: task, payload, tags, queue and limits are the same."""
    loaded = load(config)
    text = None if payload is None else read_payload(payload)
    with connect(loaded) as client, explained(loaded):
        (run_id,) = complete_ids(loaded, [run])
        accepted = client.ask(ReplayRun(run_id=run_id, payload=text), Accepted)
        if wait:
            print_outcome(wait_for(client, accepted.run_ids[0]), json=json)
        else:
            print_document(accepted_documents(client, accepted)[0], json=json)
