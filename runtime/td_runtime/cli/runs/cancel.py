"""``td-runtime runs cancel``."""

from typing import Annotated

import typer

from td_runtime.cli.options import ConfigOption, JsonOption, connect, load, print_json
from td_runtime.cli.run_ids import complete_ids, explained, unknown_run
from td_runtime.control import CanceledRuns, CancelRuns

__all__ = ["RunsArgument", "cancel"]

RunsArgument = Annotated[
    list[str], typer.Argument(metavar="RUN...", help="Their ids, or the first characters of each.")
]


def cancel(
    runs: RunsArgument,
    config: ConfigOption = None,
    children: Annotated[
        bool, typer.Option("--children", help="Cancel everything below them, too.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Cancel runs: at once if they wait, by telling them if they execute.

    A run that has ended stays as it is.
    """
    loaded = load(config)
    with connect(loaded) as client, explained(loaded):
        ids = complete_ids(loaded, runs)
        answer = client.ask(CancelRuns(run_ids=ids, descendants=children), CanceledRuns)
    if json:
        print_json(
            {
                "canceled": answer.canceled,
                "requested": answer.requested,
                "finished": answer.finished,
                "unknown": answer.unknown,
            }
        )
    else:
        _print(answer)
    if answer.unknown:
        raise unknown_run(loaded, *answer.unknown)


def _print(answer: CanceledRuns) -> None:
    for run_id in answer.canceled:
        typer.echo(f"{run_id}  CANCELED")
    for run_id in answer.requested:
        typer.echo(f"{run_id}  executes, and was told to stop")
    for run_id in answer.finished:
        typer.echo(f"{run_id}  had ended already")
