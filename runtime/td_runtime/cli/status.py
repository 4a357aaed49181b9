"""``td-runtime status``."""

import time
from typing import Any

import msgspec
import typer

from td_runtime.cli.options import ConfigOption, JsonOption, connect, load, print_json
from td_runtime.cli.tables import moment, print_table, span
from td_runtime.control import (
    ControlClient,
    GetStatus,
    ListSchedules,
    ListTasks,
    SchedulesView,
    StatusView,
    TasksView,
)

__all__ = ["status"]


def status(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Show the running supervisor, its workers, runs, loops and schedules."""
    with connect(load(config)) as client:
        view = client.ask(GetStatus(), StatusView)
        loops = _loops(client)
        schedules = _schedules(client)
    if json:
        document = msgspec.to_builtins(view)
        document.pop("type", None)
        print_json({**document, "loops": loops, "schedules": schedules})
    else:
        _print_summary(view, loops, schedules)
        _print_workers(view)


def _loops(client: ControlClient) -> dict[str, int]:
    """Return the replicas of each task that is a loop."""
    tasks = client.ask(ListTasks(), TasksView).tasks

    return {task.id: task.replicas for task in tasks if task.replicas}


def _schedules(client: ControlClient) -> dict[str, float | None]:
    """Return the next tick of each schedule."""
    schedules = client.ask(ListSchedules(upcoming=1), SchedulesView).schedules

    return {each.task: each.upcoming[0] if each.upcoming else None for each in schedules}


def _print_summary(view: StatusView, loops: dict[str, int], schedules: dict[str, Any]) -> None:
    up = span(time.time() - view.started_at)
    typer.echo(f"td-runtime {view.version}, pid {view.pid}, {view.state}, up {up}")
    typer.echo(f"control plane {view.control_plane_url}, gateway pid {view.gateway_pid or '-'}")
    runs = "  ".join(f"{status} {count}" for status, count in view.runs.items() if count)
    typer.echo(f"runs: {runs or 'none'}")
    if loops:
        typer.echo(f"loops: {'  '.join(f'{task} x {count}' for task, count in loops.items())}")
    if schedules:
        ticks = (f"{task} {moment(at) or 'never'}" for task, at in schedules.items())
        typer.echo(f"next ticks: {'  '.join(ticks)}")


def _print_workers(view: StatusView) -> None:
    rows = [
        (str(each.number), str(each.pid), each.state, str(each.runs), str(each.restarts))
        for each in view.workers
    ]
    print_table(("worker", "pid", "state", "runs", "restarts"), rows)
