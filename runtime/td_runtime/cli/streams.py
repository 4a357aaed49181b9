"""``td-runtime streams``."""

from typing import TYPE_CHECKING, Annotated

import typer

from td_runtime.cli.options import ConfigOption, control_plane_access, load, print_json
from td_runtime.config import Config
from td_runtime.control import ControlClient, GetTree, TreeView
from td_runtime.data_dir import DataDir
from td_runtime.errors import ControlPlaneUnavailableError, TdRuntimeError

if TYPE_CHECKING:
    from td_worker.streams.reader import Subscription

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Realtime streams of runs.")

_FOLLOW_TIMEOUT = 5
"""Seconds of silence after which --follow looks whether the run has ended."""


@app.command()
def read(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Id of the run.")],
    key: Annotated[str, typer.Argument(metavar="[KEY]", help="Which of its streams.")] = "default",
    config: ConfigOption = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the run has ended.")
    ] = False,
) -> None:
    """Print a stream of RUN, one JSON chunk a line."""
    import asyncio

    loaded = load(config)
    asyncio.run(_print_stream(loaded, run, key, follow))


async def _print_stream(config: Config, run_id: str, key: str, follow: bool) -> None:
    import asyncio

    from td_worker.control_plane import ControlPlane
    from td_worker.errors import ControlPlaneError
    from td_worker.streams.reader import Subscription

    url, secret = control_plane_access(config)
    timeout = _FOLLOW_TIMEOUT if follow else 1
    async with ControlPlane(url, secret.reveal()) as control_plane:
        subscription = Subscription(
            lambda cursor: control_plane.open_run_stream(
                run_id, key, last_event_id=cursor, timeout_s=timeout
            )
        )
        try:
            await _print_chunks(subscription)
            while follow and not await asyncio.to_thread(_has_ended, config, run_id):
                await _print_chunks(subscription)
            # What was written between the last look at the stream and the end of the run.
            if follow:
                await _print_chunks(subscription)
        except ControlPlaneError as error:
            raise ControlPlaneUnavailableError(
                str(error), where=f"{url}, run {run_id}, stream {key!r}"
            ) from error


async def _print_chunks(subscription: "Subscription") -> None:
    """Print until the server ends the body."""
    async for parts in subscription.batches():
        for part in parts:
            if part.has_chunk:
                print_json(part.chunk)


def _has_ended(config: Config, run_id: str) -> bool:
    try:
        with ControlClient(DataDir(config.runtime.data_dir)) as client:
            view = client.ask(GetTree(root_id=run_id), TreeView)
    except TdRuntimeError:
        return True
    statuses = [run.outcome.status for run in view.runs if run.outcome.id == run_id]

    return not any(status in _UNFINISHED for status in statuses)


_UNFINISHED = frozenset({"QUEUED", "DELAYED", "EXECUTING", "WAITING", "RETRYING"})
