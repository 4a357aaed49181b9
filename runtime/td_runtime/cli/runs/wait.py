"""``td-runtime runs wait``."""

from typing import TYPE_CHECKING, Annotated

import typer

from td_runtime.cli.options import ConfigOption, JsonOption, connect, load, read_seconds
from td_runtime.cli.outcomes import print_outcome, wait_for
from td_runtime.cli.run_ids import complete_id, complete_ids, explained
from td_runtime.cli.runs.show import RunArgument
from td_runtime.config import Config
from td_runtime.control import NotRunningError, RunView
from td_worker.messages import ChildOutcome

if TYPE_CHECKING:
    from td_runtime.store import RunReader

__all__ = ["wait"]


def wait(
    run: RunArgument,
    config: ConfigOption = None,
    timeout: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="Give up after so long, as 30s; else never."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Wait until a run has ended; exits with 0 if it completed, else with 1.

    Needs no supervisor if it has ended already.
    """
    loaded = load(config)
    seconds = None if timeout is None else read_seconds(timeout, "--timeout")
    (run_id,) = complete_ids(loaded, [run])
    try:
        client = connect(loaded)
    except NotRunningError:
        ended = _look_up(loaded, run_id)
        if ended is None:
            raise
        print_outcome(ended, json=json)
        return
    with client, explained(loaded):
        print_outcome(wait_for(client, run_id, timeout=seconds), json=json)


def _look_up(config: Config, run_id: str) -> RunView | None:
    """Return how a run ended; None if it has not.

    Raises:
        TdRuntimeError: There is no such run.
    """
    from td_runtime.cli.reading import read_store

    async def read(reader: "RunReader") -> RunView | None:
        run = await reader.get(await complete_id(reader, config, run_id))
        if run is None or not run.status.is_finished:
            return None
        outcome = ChildOutcome(
            id=run.id, task=run.task, status=str(run.status), output=run.output, error=run.error
        )
        return RunView(
            outcome=outcome, attempt=run.attempt, pid=run.pid, records_lost=run.records_lost
        )

    return read_store(config, read)
