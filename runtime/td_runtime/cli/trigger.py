"""``td-runtime trigger``."""

from typing import Annotated, Any

import msgspec
import typer

from td_runtime.cli.batch import read_payloads, trigger_in_batches
from td_runtime.cli.options import (
    ConfigOption,
    JsonOption,
    PayloadOption,
    connect,
    load,
    print_json,
    read_metadata,
    read_moment,
    read_payload,
    read_seconds,
)
from td_runtime.cli.outcomes import (
    accepted_documents,
    finish,
    new_document,
    outcome_of,
    print_document,
    run_document,
    wait_for,
)
from td_runtime.cli.run_ids import explained
from td_runtime.config import Config
from td_runtime.control import Accepted, ControlClient, ControlRefusedError, TriggerRuns
from td_runtime.errors import UsageError
from td_worker.messages import TriggerItem

__all__ = ["ask_for_run", "trigger"]


def trigger(
    task: Annotated[str, typer.Argument(metavar="TASK", help="Id of the task.")],
    config: ConfigOption = None,
    payload: PayloadOption = None,
    batch: Annotated[
        str | None,
        typer.Option(metavar="FILE|-", help="A run for each line, which is its payload as JSON."),
    ] = None,
    delay: Annotated[
        str | None,
        typer.Option(metavar="WHEN", help="Not to start before: in 10m, or at a time."),
    ] = None,
    ttl: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="Time within which it must start; else it expires."),
    ] = None,
    priority: Annotated[
        float, typer.Option(metavar="SECONDS", help="Head start over others in the queue.")
    ] = 0.0,
    tag: Annotated[
        list[str] | None,
        typer.Option(metavar="TAG", help="To find it by; may be given several times."),
    ] = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="A second run of the task with it is the first one."),
    ] = None,
    idempotency_key_ttl: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="How long that holds; else 30 days."),
    ] = None,
    queue: Annotated[
        str | None, typer.Option(metavar="QUEUE", help="Instead of the task's own.")
    ] = None,
    concurrency_key: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="Runs with the same one share concurrency_per_key."),
    ] = None,
    max_attempts: Annotated[
        int | None, typer.Option(min=1, metavar="COUNT", help="Instead of the task's.")
    ] = None,
    max_duration: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="Time an attempt may take, instead of the task's."),
    ] = None,
    metadata: Annotated[
        str | None, typer.Option(metavar="JSON|@FILE", help="JSON that goes along with the run.")
    ] = None,
    stream_run: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="A run of Trigger.dev whose streams it writes to."),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the outcome.")] = False,
    json: JsonOption = False,
) -> None:
    """Ask the running supervisor for a run of TASK, or for many."""
    _check_together(payload, batch, idempotency_key, idempotency_key_ttl)
    item = TriggerItem(
        task=task,
        run_at=None if delay is None else read_moment(delay, "--delay", ago=False),
        ttl=_seconds(ttl, "--ttl"),
        priority=priority,
        tags=tuple(tag or ()),
        idempotency_key=idempotency_key,
        idempotency_ttl=_seconds(idempotency_key_ttl, "--idempotency-key-ttl"),
        queue=queue,
        concurrency_key=concurrency_key,
        max_attempts=max_attempts,
        max_duration=_seconds(max_duration, "--max-duration"),
        metadata=read_metadata(metadata),
        stream_run_id=stream_run,
    )
    loaded = load(config)
    if batch is None:
        _trigger_one(loaded, _with(item, read_payload(payload)), wait=wait, json=json)
        return
    items = [_with(item, text) for text in read_payloads(batch)]
    _trigger_many(loaded, items, wait=wait, json=json)


def _check_together(
    payload: str | None, batch: str | None, key: str | None, key_ttl: str | None
) -> None:
    """Raise UsageError for options that contradict each other."""
    if batch is not None and payload is not None:
        raise UsageError("--batch has the payloads, so there is no --payload")
    if batch is not None and key is not None:
        raise UsageError(
            "--batch with one --idempotency-key would be one run, however many lines there are"
        )
    if key_ttl is not None and key is None:
        raise UsageError("--idempotency-key-ttl without --idempotency-key says nothing")


def _seconds(text: str | None, option: str) -> float | None:
    return None if text is None else read_seconds(text, option)


def _with(item: TriggerItem, payload: bytes) -> TriggerItem:
    return msgspec.structs.replace(item, payload=payload)


def _trigger_one(config: Config, item: TriggerItem, *, wait: bool, json: bool) -> None:
    with connect(config) as client, explained(config):
        accepted = _ask(client, config, item)
        if wait:
            document = outcome_of(client, accepted)
        else:
            (document,) = accepted_documents(client, accepted, run_at=item.run_at)
    print_document(document, json=json)
    if wait:
        finish([document])


def _trigger_many(config: Config, items: list[TriggerItem], *, wait: bool, json: bool) -> None:
    for item in items:
        check_size(item, config)
    with connect(config) as client, explained(config):
        run_ids = trigger_in_batches(client, items, limit=config.limits.batch)
        documents: list[dict[str, Any]] = [
            run_document(wait_for(client, run_id))
            if wait
            else new_document(run_id, items[0].run_at)
            for run_id in run_ids
        ]
    if json:
        print_json({"runs": documents})
    else:
        for document in documents:
            print_document(document, json=False)
    if wait:
        finish(documents)


def ask_for_run(client: ControlClient, config: Config, item: TriggerItem) -> str:
    """Have a run accepted; returns its id.

    Raises:
        ControlRefusedError: An unknown task, or a limit; says where the valid ones are set.
    """
    with explained(config):
        return _ask(client, config, item).run_ids[0]


def _ask(client: ControlClient, config: Config, item: TriggerItem) -> Accepted:
    check_size(item, config)

    return client.ask(TriggerRuns(items=[item]), Accepted)


def check_size(item: TriggerItem, config: Config) -> None:
    """Refuse a payload that is too large; one that is much too large fits into no message.

    Raises:
        ControlRefusedError: It is.
    """
    limit = config.limits.payload
    if len(item.payload) > limit:
        raise ControlRefusedError(
            f"the payload for task {item.task!r} has {len(item.payload)} bytes; "
            f"limits.payload = {limit}",
            where=str(config.path),
            advice="Pass where the data is, not the data; or raise limits.payload.",
        )
