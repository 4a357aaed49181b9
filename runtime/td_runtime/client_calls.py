"""What the clients of web apps ask, and what they make of the answers; no I/O."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypedDict

import msgspec

from td_runtime.control_messages import (
    Accepted,
    ListRuns,
    ReplayRun,
    Request,
    RescheduleRun,
    RunView,
    TriggerRuns,
)
from td_runtime.data_dir import DataDir

if TYPE_CHECKING:
    from td_worker.messages import TriggerItem
    from td_worker.tasks import RunResult
    from td_worker.trigger_options import Duration

__all__ = ["ListOptions", "RunHandle"]

_decoder: Final = msgspec.msgpack.Decoder(Request)


@dataclass(frozen=True, slots=True)
class RunHandle:
    """A run that was accepted: it will be executed at least once, whatever dies (R1)."""

    id: str
    task: str
    created: bool = True
    """False when its idempotency key led to a run that was there already."""


class ListOptions(TypedDict, total=False):
    """Which runs a list shows: those that meet every condition, newest first."""

    status: str | Iterable[str]
    """One status, or any of several."""
    task: str | Iterable[str]
    """One task, or any of several."""
    tag: str
    queue: str
    parent_id: str
    """Triggered by this run."""
    since: datetime | float
    """Accepted then or later; a number is seconds since the epoch."""
    until: datetime | float
    """Accepted before."""
    before: str
    """Only runs older than the one with this id: the next page."""
    after: str
    """Only runs newer than the one with this id: the page before."""
    limit: int
    """Most runs on the page: 50 if nothing is said, at most 1000."""


def find_data_dir(config: str | os.PathLike[str] | None, data_dir: object) -> DataDir:
    """Return the data folder that a client is to use.

    Raises:
        ConfigError: There is no config file, or it is wrong.
        TypeError: Both are given.
    """
    if data_dir is not None:
        if config is not None:
            raise TypeError("give a config file or a data folder, not both")
        return DataDir(Path(os.fspath(data_dir)).absolute())  # type: ignore[call-overload]
    from td_runtime.config import find_config, load_config

    loaded = load_config(find_config(None if config is None else Path(config)))

    return DataDir(loaded.runtime.data_dir)


def check(request: msgspec.Struct) -> None:
    """Refuse what the supervisor could not read: it would hang up, as if it were gone.

    Raises:
        TypeError: A value is of no type that the call takes; says which.
    """
    if isinstance(request, TriggerRuns):  # its runs have been looked at one by one
        return
    try:
        _decoder.decode(msgspec.msgpack.encode(request))
    except msgspec.ValidationError as error:
        raise TypeError(f"this is no request for a supervisor: {error}") from error


def trigger_request(items: list[TriggerItem]) -> TriggerRuns:
    """Return the request for runs."""
    return TriggerRuns(items=items)


def handles(items: list[TriggerItem], accepted: Accepted) -> list[RunHandle]:
    """Return the answer to it."""
    answers = zip(items, accepted.run_ids, accepted.created, strict=True)

    return [RunHandle(run_id, item.task, created) for item, run_id, created in answers]


def list_request(options: ListOptions) -> ListRuns:
    """Return the request for a page of runs.

    Raises:
        TypeError: There is no such option.
    """
    fields: dict[str, Any] = dict(options)
    if unknown := fields.keys() - ListOptions.__annotations__.keys():
        raise TypeError(
            f"list has no option {min(unknown)!r}; it has {', '.join(ListOptions.__annotations__)}"
        )
    for name, plural in (("status", "statuses"), ("task", "tasks")):
        if name in fields:
            value = fields.pop(name)
            fields[plural] = frozenset({value} if isinstance(value, str) else value)
    for name in ("since", "until"):
        if isinstance(fields.get(name), datetime):
            fields[name] = fields[name].timestamp()

    return ListRuns(**fields)


def replay_request(run_id: str, payload: Any) -> ReplayRun:
    """Return the request for a replay; *payload* is UNSET for the old one."""
    from td_worker.encoding import encode_json

    text = None if payload is msgspec.UNSET else encode_json(payload)

    return ReplayRun(run_id=run_id, payload=text)


def reschedule_request(run_id: str, delay: Duration | datetime) -> RescheduleRun:
    """Return the request for another time to start."""
    from td_worker.trigger_options import moment_of

    return RescheduleRun(run_id=run_id, run_at=moment_of(delay) or 0.0)


def result(view: RunView) -> RunResult:
    """Return how a run ended."""
    from td_worker import tasks

    return tasks.result(view.outcome)
