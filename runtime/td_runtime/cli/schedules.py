"""``td-runtime schedules``."""

import time
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import typer

from td_runtime.cli.options import ConfigOption, JsonOption, load, print_json
from td_runtime.cli.tables import print_table
from td_runtime.config import Config

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

    from td_runtime.schedule import Schedule

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Schedules: tasks that run by themselves.")

_HEADER: Final = ("task", "cron", "time zone", "next ticks", "last tick")
_UPCOMING: Final = 3


@app.command("list")
def list_(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Show the scheduled tasks, their next ticks and the last one; needs no supervisor."""
    loaded = load(config)
    last = _last_ticks(loaded)
    found = [
        _document(task.id, schedule, last.get(task.id))
        for task in loaded.tasks
        if (schedule := task.schedule) is not None
    ]
    if json:
        print_json({"schedules": found})
    elif found:
        print_table(_HEADER, [_row(each) for each in found])
    else:
        typer.echo("no task has a `cron` in the config file", err=True)


def _last_ticks(config: Config) -> dict[str, float]:
    from td_runtime.cli.reading import has_store, read_store

    if not has_store(config):
        return {}
    found = read_store(config, lambda reader: reader.last_ticks())

    # Ticks are whole seconds; anything else is when the schedule began.
    return {task: at for task, at in found.items() if at.is_integer()}


def _document(task: str, schedule: "Schedule", last: float | None) -> dict[str, Any]:
    return {
        "task": task,
        "cron": schedule.pattern,
        "timezone": schedule.timezone,
        "missed_ticks": schedule.missed,
        "next": schedule.next_ticks(max(last or 0.0, time.time()), _UPCOMING),
        "last": last,
    }


def _row(schedule: dict[str, Any]) -> tuple[str, ...]:
    from zoneinfo import ZoneInfo

    zone = ZoneInfo(schedule["timezone"])

    return (
        schedule["task"],
        schedule["cron"],
        schedule["timezone"],
        ", ".join(_local(at, zone) for at in schedule["next"]) or "never",
        _local(schedule["last"], zone) if schedule["last"] is not None else "none yet",
    )


def _local(at: float, zone: "ZoneInfo") -> str:
    """Write a tick as clocks in its zone show it; the offset tells a repeated hour apart."""
    return datetime.fromtimestamp(at, zone).strftime("%a %Y-%m-%d %H:%M %z")
