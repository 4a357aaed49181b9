"""``td-runtime stop`` and ``td-runtime drain``: end the supervisor in order, and see it gone."""

import os
import select
from pathlib import Path
from typing import Annotated, Final

import typer

from td_runtime.cli.options import ConfigOption, JsonOption, connect, load, print_json, read_seconds
from td_runtime.cli.run_ids import explained
from td_runtime.control import GetStatus, StatusView, Stopping, StopRuntime
from td_runtime.errors import UsageError
from td_runtime.units import format_duration

__all__ = ["drain", "stop"]

_HOWEVER_LONG: Final = 7 * 86_400.0
"""Seconds; more than that no supervisor takes."""


def stop(
    config: ConfigOption = None,
    now: Annotated[
        bool, typer.Option("--now", help="Give running runs no time: requeue them at once.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Stop the running supervisor as SIGTERM does, and return when it is gone.

    Runs under way get `runtime.drain_timeout`; what has not ended goes on at the next start.
    """
    _end(config, 0.0 if now else None, json=json)


def drain(
    config: ConfigOption = None,
    timeout: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="Give runs under way no longer, as 10m."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Let runs under way end, however long they take, then stop; return when it is gone."""
    seconds = _HOWEVER_LONG if timeout is None else read_seconds(timeout, "--timeout")
    if seconds > _HOWEVER_LONG:
        raise UsageError(
            f"{timeout!r} is longer than {format_duration(_HOWEVER_LONG)}", where="--timeout"
        )
    _end(config, seconds, json=json)


def _end(config: Path | None, drain_timeout: float | None, *, json: bool) -> None:
    loaded = load(config)
    with connect(loaded) as client, explained(loaded):
        before = client.ask(GetStatus(), StatusView)
        # Opened while it surely lives: the number could be another process's later.
        process = os.pidfd_open(before.pid)
        try:
            stopping = client.ask(StopRuntime(drain_timeout=drain_timeout), Stopping)
            if not json:
                patience = loaded.runtime.drain_timeout if drain_timeout is None else drain_timeout
                _tell_what_is_under_way(before, patience)
            select.select([process], [], [])
        finally:
            os.close(process)
    if json:
        print_json({"pid": stopping.pid, "stopped": True})
    else:
        typer.echo(f"stopped (pid {stopping.pid})")


def _tell_what_is_under_way(view: StatusView, patience: float) -> None:
    count = sum(worker.runs for worker in view.workers)
    if count:
        runs = "1 run is" if count == 1 else f"{count} runs are"
        given = (
            f"waiting for at most {format_duration(patience)}" if patience else "requeued at once"
        )
        typer.echo(f"{runs} under way: {given}", err=True)
