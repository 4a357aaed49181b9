"""``td-runtime status``."""

import time

import msgspec
import typer

from td_runtime.cli.options import ConfigOption, JsonOption, load, print_json
from td_runtime.control import ControlClient, GetStatus, StatusView
from td_runtime.data_dir import DataDir

__all__ = ["status"]


def status(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Show the running supervisor, its workers and its runs."""
    with ControlClient(DataDir(load(config).runtime.data_dir)) as client:
        view = client.ask(GetStatus(), StatusView)
    if json:
        document = msgspec.to_builtins(view)
        document.pop("type", None)
        print_json(document)
    else:
        _print_tables(view)


def _print_tables(view: StatusView) -> None:
    from rich.console import Console
    from rich.table import Table

    up = int(time.time() - view.started_at)
    typer.echo(f"td-runtime {view.version}, pid {view.pid}, {view.state}, up {up} s")
    typer.echo(f"control plane {view.control_plane_url}, gateway pid {view.gateway_pid or '-'}")
    runs = "  ".join(f"{status} {count}" for status, count in view.runs.items()) or "none"
    typer.echo(f"runs: {runs}")
    table = Table("worker", "pid", "state", "runs", "restarts")
    for worker in view.workers:
        table.add_row(
            str(worker.number),
            str(worker.pid),
            worker.state,
            str(worker.runs),
            str(worker.restarts),
        )
    Console().print(table)
