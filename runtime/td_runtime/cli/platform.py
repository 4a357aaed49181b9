"""``td-runtime platform``: the embedded control plane and stream store, for tests and curiosity."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from td_runtime.cli.options import ConfigOption, JsonOption, control_plane_access, load, print_json
from td_runtime.errors import UsageError
from td_runtime.units import parse_duration

if TYPE_CHECKING:
    from td_runtime.gateway.client import PlatformClient

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True, help="Look at the embedded platform, or break it on purpose."
)


class FaultKind(StrEnum):
    """What can be done to requests and tokens."""

    EXPIRE = "expire"
    REVOKE = "revoke"
    STATUS = "status"
    DELAY = "delay"
    DROP = "drop"
    DROP_AFTER = "drop-after"
    CLEAR = "clear"
    LIST = "list"


class Target(StrEnum):
    """Whose requests a fault is for."""

    CONTROL_PLANE = "control-plane"
    STREAM_STORE = "stream-store"


@app.command()
def stats(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Show PUTs per slot and records per stream."""
    with _client(config) as client:
        found = client.all_stats()
    if json:
        print_json(found)
        return
    for slot, count in found["puts"].items():
        typer.echo(f"{count:>9} PUTs     {slot}")
    for stream, count in found["records"].items():
        typer.echo(f"{count:>9} records  {stream}")


@app.command()
def fault(
    kind: Annotated[
        FaultKind,
        typer.Argument(metavar="KIND", help="What to do; `clear` ends all, `list` shows."),
    ],
    config: ConfigOption = None,
    target: Annotated[
        Target, typer.Option(help="Whose requests; expire and revoke act on tokens at once.")
    ] = Target.CONTROL_PLANE,
    count: Annotated[
        int | None, typer.Option(min=1, help="For so many requests; else until cleared.")
    ] = None,
    status: Annotated[int, typer.Option(min=400, max=599, help="For `status`: the answer.")] = 503,
    delay: Annotated[str, typer.Option(help="For `delay`: how long, as 200ms or 2s.")] = "1s",
    slot: Annotated[str | None, typer.Option(help="For expire and revoke: only this slot.")] = None,
) -> None:
    """Break the platform on purpose (needs `start --allow-faults`)."""
    with _client(config) as client:
        match kind:
            case FaultKind.LIST:
                answer = client.faults()
            case FaultKind.CLEAR:
                answer = client.clear_faults()
            case FaultKind.EXPIRE | FaultKind.REVOKE:
                answer = client.add_fault({"kind": f"{kind}-tokens", "slot": slot})
            case _:
                answer = client.add_fault(_request_fault(kind, target, count, status, delay))
    print_json(answer)


def _request_fault(
    kind: FaultKind, target: Target, count: int | None, status: int, delay: str
) -> dict[str, Any]:
    document: dict[str, Any] = {"kind": str(kind), "target": str(target), "count": count}
    if kind is FaultKind.STATUS:
        document["status"] = status
    if kind is FaultKind.DELAY:
        document["seconds"] = _seconds(delay)

    return document


def _seconds(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise UsageError(
            f"{text!r} is no duration", where="--delay", advice="Write it as 200ms, 2s or 1m."
        ) from error


def _client(config: Path | None) -> "PlatformClient":
    from td_runtime.gateway.client import PlatformClient

    loaded = load(config)
    if not loaded.control_plane.is_embedded:
        raise UsageError(
            f'{loaded.path}: control_plane.url = "{loaded.control_plane.url}": only the embedded '
            "platform can be looked at and broken",
            where=str(loaded.path),
        )

    return PlatformClient(*control_plane_access(loaded))
