"""``td-runtime tasks``."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import typer

from td_runtime.cli.options import ConfigOption, JsonOption, load, print_json
from td_runtime.cli.tables import print_table
from td_runtime.config import Config, TaskConfig
from td_runtime.units import format_duration

if TYPE_CHECKING:
    from td_runtime.store import Status

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Tasks: what the config file says, and their runs.")

_HEADER: Final = (
    *("task", "entrypoint", "queue", "concurrency", "attempts", "cron", "replicas", "runs"),
)


@app.command("list")
def list_(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Show the tasks of the config file with their runs by status; needs no supervisor."""
    loaded = load(config)
    counts = _count(loaded)
    tasks = [_document(task, counts.pop(task.id, {})) for task in loaded.tasks]
    # What waits for a task that is not there any more is easily forgotten.
    left = {task: found for task, found in counts.items() if _is_unfinished(found)}
    if json:
        print_json({"tasks": tasks, "unregistered": left})
        return
    print_table(_HEADER, [_row(task) for task in tasks])
    for task, found in left.items():
        typer.echo(f"not in the config file: {task}: {_in_words(found)}", err=True)


def _count(config: Config) -> dict[str, dict[str, int]]:
    """Return the runs of each task by status; none at all before the first start."""
    from td_runtime.cli.reading import has_store, read_store

    if not has_store(config):
        return {}
    found = read_store(config, lambda reader: reader.counts_by_task())

    return {task: _in_order(counts) for task, counts in found.items()}


def _in_order(counts: "Mapping[Status, int]") -> dict[str, int]:
    from td_runtime.store import Status

    return {str(status): counts[status] for status in Status if status in counts}


def _is_unfinished(counts: Mapping[str, int]) -> bool:
    from td_runtime.store import Status

    return any(not Status(status).is_finished for status in counts)


def _document(task: TaskConfig, counts: dict[str, int]) -> dict[str, Any]:
    from td_runtime.queues import queue_of

    retry = task.retry

    return {
        "id": task.id,
        "entrypoint": task.entrypoint,
        "queue": queue_of(task),
        "concurrency": task.concurrency,
        "concurrency_per_key": task.concurrency_per_key,
        "retry": {
            "max_attempts": retry.max_attempts,
            "factor": retry.factor,
            "min_timeout": retry.min_timeout,
            "max_timeout": retry.max_timeout,
            "randomize": retry.randomize,
        },
        "max_crashes": task.max_crashes,
        "max_duration": task.max_duration,
        "ttl": task.ttl,
        "cron": task.cron,
        "timezone": task.timezone,
        "replicas": task.replicas,
        "runs": counts,
    }


def _row(task: dict[str, Any]) -> tuple[str, ...]:
    per_key = task["concurrency_per_key"]
    limits = [str(task["concurrency"])] if task["concurrency"] is not None else []
    limits += [f"{per_key} a key"] if per_key is not None else []

    return (
        task["id"],
        task["entrypoint"],
        task["queue"],
        ", ".join(limits),
        "1" if task["replicas"] else _attempts(task["retry"]),
        f"{task['cron']} ({task['timezone']})" if task["cron"] else "",
        str(task["replicas"] or ""),
        _in_words(task["runs"]),
    )


def _attempts(retry: Mapping[str, Any]) -> str:
    if retry["max_attempts"] == 1:
        return "1"
    first, last = (format_duration(retry[name]) for name in ("min_timeout", "max_timeout"))

    return f"{retry['max_attempts']}, {first} to {last}"


def _in_words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{status} {count:,}" for status, count in counts.items())
