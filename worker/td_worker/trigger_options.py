"""The options of a trigger, as Python says them, and what travels."""

import time
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any, Final, TypeAlias, TypedDict

import msgspec

from td_worker.encoding import encode_json
from td_worker.messages import TriggerItem

__all__ = ["Duration", "TriggerOptions", "make_item", "make_items", "moment_of"]

Duration: TypeAlias = float | timedelta
"""Seconds, or a `timedelta`."""

_decoder: Final = msgspec.msgpack.Decoder(TriggerItem)


class TriggerOptions(TypedDict, total=False):
    """
    What may be said about a run when it is triggered.

    ```python
    options: TriggerOptions = {"delay": 60, "tags": ["user_17"], "idempotency_key": "order-4711"}
    await tasks.trigger("child", {"order": 4711}, **options)
    ```
    """

    delay: Duration | datetime
    """The run starts so much later, or at that moment, not before. One without a time zone is
    local time."""
    ttl: Duration
    """A run that has not started so long after it might have is EXPIRED."""
    priority: float
    """Seconds of head start over runs that are ready since the same moment."""
    tags: str | Iterable[str]
    """What lists find the run by."""
    idempotency_key: str
    """Of two requests for a task with the same key the second gets the first one's run."""
    idempotency_key_ttl: Duration
    """How long the key holds; 30 days if nothing is said."""
    concurrency_key: str
    """Runs of a queue with the same key share the limit `concurrency_per_key`."""
    queue: str
    """The queue it waits in, if not its task's."""
    max_attempts: int
    """In place of what the task's config says."""
    max_duration: Duration
    """How long an attempt may take, in place of what the task's config says."""
    metadata: Any
    """Anything JSON can say; it goes along with the run, and can be changed."""


def make_item(
    task: str, payload: Any, options: TriggerOptions, *, key: str | None = None
) -> TriggerItem:
    """Return the request for a run.

    Args:
        task: The task's id.
        payload: Anything JSON can say; dataclasses, msgspec structs and pydantic models too.
        options: What is to be different from a plain trigger.
        key: The idempotency key, in place of the one in *options*.

    Raises:
        TypeError: There is no such option, or a value is of no type that it takes.
    """
    if unknown := options.keys() - TriggerOptions.__annotations__.keys():
        raise TypeError(
            f"trigger has no option {min(unknown)!r}; it has "
            f"{', '.join(TriggerOptions.__annotations__)}"
        )
    tags = options.get("tags", ())
    metadata = options.get("metadata")

    item = TriggerItem(
        task=task,
        idempotency_key=options.get("idempotency_key") if key is None else key,
        idempotency_ttl=_seconds(options.get("idempotency_key_ttl"), "idempotency_key_ttl"),
        run_at=moment_of(options.get("delay")),
        ttl=_seconds(options.get("ttl"), "ttl"),
        priority=options.get("priority", 0.0),
        queue=options.get("queue"),
        concurrency_key=options.get("concurrency_key"),
        tags=(tags,) if isinstance(tags, str) else tuple(tags),
        max_attempts=options.get("max_attempts"),
        max_duration=_seconds(options.get("max_duration"), "max_duration"),
        metadata=None if metadata is None else encode_json(metadata),
    )
    _check_types(item)

    return msgspec.structs.replace(item, payload=encode_json(payload))


def make_items(
    task: str, payloads: Iterable[Any], options: TriggerOptions, *, key: str | None = None
) -> list[TriggerItem]:
    """Return the requests for one run a payload; raises as :func:`make_item`.

    An idempotency key is given to each with its place, so that a batch that is asked for again
    is found again.
    """
    if key is None:
        key = options.get("idempotency_key")
    if not options and key is None:  # what most batches are, in a quarter of the time
        _check_types(TriggerItem(task=task))
        return [TriggerItem(task=task, payload=encode_json(payload)) for payload in payloads]

    return [
        make_item(task, payload, options, key=None if key is None else f"{key}:{index}")
        for index, payload in enumerate(payloads)
    ]


def moment_of(delay: Duration | datetime | None) -> float | None:
    """Return when what is delayed so may start, in seconds since the epoch; None: at once.

    Raises:
        TypeError: It is a text.
    """
    if isinstance(delay, datetime):
        return delay.timestamp()
    seconds = _seconds(delay, "delay")

    return None if seconds is None else time.time() + seconds


def _seconds(duration: Duration | None, name: str) -> float | None:
    if isinstance(duration, timedelta):
        return duration.total_seconds()
    if isinstance(duration, str):  # "10" would be a number, and "10m" a puzzle
        raise TypeError(f"{name} = {duration!r}: must be seconds or a timedelta")

    return None if duration is None else float(duration)


def _check_types(item: TriggerItem) -> None:
    """Refuse what the supervisor could not read: it would hang up, or take the worker for broken.

    Raises:
        TypeError: A value is of no type that the option takes; says which.
    """
    try:
        _decoder.decode(msgspec.msgpack.encode(item))
    except msgspec.ValidationError as error:
        raise TypeError(f"these are no options of a trigger: {error}") from error
