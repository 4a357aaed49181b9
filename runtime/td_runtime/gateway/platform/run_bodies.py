"""What clients send to start runs."""

import time
from collections.abc import Collection
from typing import Annotated, Any, Final

import msgspec

from td_runtime.gateway.exchange import json_reply
from td_runtime.gateway.platform.answers import RefusalError
from td_runtime.gateway.platform.durations import parse_duration, parse_moment
from td_runtime.gateway.platform.packets import decode_packet
from td_worker.messages import TriggerItem

Key = Annotated[str, msgspec.Meta(min_length=1, max_length=2048)]

_REFUSED: Final = {
    "debounce": "debounce is not supported here: use an idempotencyKey with a TTL",
    "gates": "gates are not supported here: use a queue with a limit",
    "concurrency": "named concurrency limits are not supported here: use queue and concurrencyKey",
}


class Queue(msgspec.Struct):
    """The queue that a run is to wait in."""

    name: str


class TriggerOptions(msgspec.Struct, rename="camel"):
    """The options of a run. What has no meaning on one host is read past."""

    payload_type: str | None = None
    queue: Queue | None = None
    concurrency_key: str | int | float | None = None
    delay: str | None = None
    idempotency_key: Key | None = None
    idempotency_key_ttl: str | None = msgspec.field(default=None, name="idempotencyKeyTTL")
    max_attempts: int | None = None
    max_duration: float | None = None
    metadata: Any = None
    metadata_type: str | None = None
    tags: str | list[str] = []
    ttl: str | Annotated[int, msgspec.Meta(ge=0)] | None = None
    priority: float | None = None
    debounce: Any = None
    gates: Any = None
    concurrency: Any = None


class TriggerBody(msgspec.Struct, rename="camel"):
    """The body of POST trigger."""

    payload: Any = None
    options: TriggerOptions | None = None

    def to_item(self, task: str) -> TriggerItem:
        """Return the request for a run of *task*.

        Raises:
            RefusalError: 400 or 422, an option means nothing, or nothing that is done here.
        """
        return make_item(task, self.payload, self.options or TriggerOptions())


class BatchItem(msgspec.Struct, rename="camel"):
    """One run of a batch; ``index`` only where items come as lines."""

    task: str
    payload: Any = None
    options: TriggerOptions | None = None
    index: Annotated[int, msgspec.Meta(ge=0)] | None = None

    def to_item(self) -> TriggerItem:
        """Return the request for a run; raises as :meth:`TriggerBody.to_item`."""
        return make_item(self.task, self.payload, self.options or TriggerOptions())


class BatchBody(msgspec.Struct, rename="camel"):
    """The body of POST tasks/batch."""

    items: Annotated[list[BatchItem], msgspec.Meta(min_length=1)]


class CreateBatch(msgspec.Struct, rename="camel"):
    """The body of POST batches."""

    run_count: Annotated[int, msgspec.Meta(ge=1)]
    idempotency_key: Key | None = None


class RescheduleBody(msgspec.Struct):
    """The body of POST reschedule: another delay, counted from now."""

    delay: str

    def to_moment(self) -> float:
        """Return when the run is to start.

        Raises:
            RefusalError: 400, it is neither a date nor a duration.
        """
        moment = parse_moment(self.delay)
        if moment is None:
            raise RefusalError(json_reply(400, {"error": f"Invalid delay: {self.delay}"}))

        return max(moment, time.time())


class TagsBody(msgspec.Struct):
    """The body of POST tags."""

    tags: str | list[str]

    def beyond(self, there: Collection[str]) -> tuple[str, ...]:
        """Return the tags that are not there yet; blank ones are none."""
        return tuple(
            dict.fromkeys(tag for tag in to_tags(self.tags) if tag.strip() and tag not in there)
        )


class ReplayBody(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """The body of POST replay: what is to be different, if anything."""

    payload: Any = msgspec.UNSET
    payload_type: str | None = None
    metadata: dict[str, Any] | None = None
    tags: str | list[str] | None = None
    queue: str | None = None
    concurrency_key: str | int | float | None = None
    machine: Any = None
    version: Any = None
    region: Any = None
    delay: str | None = None
    ttl: str | Annotated[int, msgspec.Meta(ge=0)] | None = None
    idempotency_key: Key | None = None
    idempotency_key_ttl: str | None = msgspec.field(default=None, name="idempotencyKeyTTL")
    max_attempts: Annotated[int, msgspec.Meta(ge=1)] | None = None
    max_duration: Annotated[float, msgspec.Meta(ge=0)] | None = None
    priority: float | None = None

    def change(self, item: TriggerItem) -> TriggerItem:
        """Return *item*, which repeats a run, with what is to be different."""
        changes: dict[str, Any] = {
            "queue": self.queue,
            "concurrency_key": to_text(self.concurrency_key),
            "run_at": read_delay(self.delay),
            "ttl": read_ttl(self.ttl),
            "idempotency_key": self.idempotency_key,
            "idempotency_ttl": read_key_ttl(self.idempotency_key_ttl),
            "max_attempts": self.max_attempts,
            "max_duration": self.max_duration,
            "priority": self.priority,
            "tags": None if self.tags is None else to_tags(self.tags),
            "metadata": None if self.metadata is None else msgspec.json.encode(self.metadata),
        }
        if self.payload is not msgspec.UNSET:
            changes["payload"] = decode_packet(self.payload, self.payload_type, name="payload")

        return msgspec.structs.replace(
            item, **{name: value for name, value in changes.items() if value is not None}
        )


def make_item(task: str, payload: Any, options: TriggerOptions) -> TriggerItem:
    """Return the request for a run; raises as :meth:`TriggerBody.to_item`."""
    for name, text in _REFUSED.items():
        if getattr(options, name):
            raise unprocessable(text)

    return TriggerItem(
        task=task,
        payload=decode_packet(payload, options.payload_type, name="payload"),
        idempotency_key=options.idempotency_key,
        idempotency_ttl=read_key_ttl(options.idempotency_key_ttl),
        run_at=read_delay(options.delay),
        ttl=read_ttl(options.ttl),
        priority=options.priority or 0.0,
        queue=None if options.queue is None else options.queue.name,
        concurrency_key=to_text(options.concurrency_key),
        tags=to_tags(options.tags),
        max_attempts=options.max_attempts,
        max_duration=options.max_duration,
        metadata=_read_metadata(options),
    )


def read_delay(text: str | None) -> float | None:
    """Return when a run may start; a moment that has passed is at once."""
    if text is None:
        return None
    moment = parse_moment(text)
    if moment is None:
        raise unprocessable(f"Invalid delay {text}")

    return moment if moment > time.time() else None


def read_ttl(value: str | int | None) -> float | None:
    """Return the seconds in which a run must start."""
    if value is None or isinstance(value, int):
        return None if value is None else float(value)
    seconds = parse_duration(value)
    if seconds is None:
        raise unprocessable(f"Invalid ttl {value}")

    return seconds


def read_key_ttl(text: str | None) -> float | None:
    """Return the seconds for which an idempotency key holds."""
    if text is None:
        return None
    seconds = parse_duration(text)
    if seconds is None:
        raise unprocessable(f"Invalid idempotencyKeyTTL {text}")

    return seconds


def to_tags(tags: str | list[str]) -> tuple[str, ...]:
    """Return one or several tags as tags."""
    return (tags,) if isinstance(tags, str) else tuple(tags)


def to_text(key: str | float | None) -> str | None:
    """Return a key that may be a number as JavaScript writes it."""
    if isinstance(key, float) and key.is_integer():
        key = int(key)

    return None if key is None else str(key)


def unprocessable(text: str) -> RefusalError:
    """422 with a text."""
    return RefusalError(json_reply(422, {"error": text}))


def _read_metadata(options: TriggerOptions) -> bytes | None:
    if options.metadata is None:
        return None
    is_packet = isinstance(options.metadata, str)

    return decode_packet(
        options.metadata, options.metadata_type if is_packet else None, name="metadata"
    )
