"""``td-runtime run``: start, one run, drain, and exit with its result."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from td_runtime.cli.options import (
    ConfigOption,
    JsonOption,
    PayloadOption,
    control_plane_access,
    load,
    print_json,
    read_payload,
)
from td_runtime.cli.trigger import run_document
from td_runtime.config import Config
from td_runtime.control import (
    Accepted,
    ControlClient,
    GetTree,
    RunView,
    TreeView,
    TriggerRuns,
    WaitForRun,
)
from td_runtime.data_dir import DataDir
from td_runtime.errors import ExitCode
from td_worker.messages import TriggerItem

if TYPE_CHECKING:
    from td_runtime.cli.follow import StreamFollower
    from td_runtime.gateway.client import PlatformClient

__all__ = ["run"]

_REFRESH = 0.25
"""Seconds between two looks for new streams, and two progress lines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Summary:
    """What one run has done."""

    view: RunView
    duration_s: float
    workers: list[int]
    puts: int
    streams: dict[str, int]
    chunks_read: int


def run(
    task: Annotated[str, typer.Argument(help="Id of the task.")],
    config: ConfigOption = None,
    payload: PayloadOption = None,
    json: JsonOption = False,
    allow_faults: Annotated[bool, typer.Option("--allow-faults", hidden=True)] = False,
) -> None:
    """Start the runtime, execute one run of TASK, follow its streams, drain, exit with its result.

    Log lines go to stderr.
    """
    # Here and not above, as in the other commands: `status` starts in half the time without.
    import asyncio

    from td_runtime.cli.owned import OwnedSupervisor

    loaded = load(config)
    text = read_payload(payload)
    try:
        with OwnedSupervisor(loaded.path, allow_faults=allow_faults):
            summary = asyncio.run(_execute(loaded, TriggerItem(task=task, payload=text)))
    except KeyboardInterrupt:
        raise typer.Exit(ExitCode.FAILED) from None
    if json:
        print_json(_document(summary))
    else:
        _print_summary(summary)
    if summary.view.outcome.status != "COMPLETED":
        raise typer.Exit(ExitCode.FAILED)


async def _execute(config: Config, item: TriggerItem) -> _Summary:
    import asyncio

    from td_runtime.cli.follow import StreamFollower
    from td_runtime.gateway.client import PlatformClient
    from td_worker.control_plane import ControlPlane

    url, secret = control_plane_access(config)
    with ControlClient(DataDir(config.runtime.data_dir)) as control:
        started = time.monotonic()
        run_id = control.ask(TriggerRuns(items=[item]), Accepted).run_ids[0]
        if not config.control_plane.is_embedded:
            view = await asyncio.to_thread(control.ask, WaitForRun(run_id=run_id), RunView)
            return _summary(control, view, time.monotonic() - started)
        async with ControlPlane(url, secret.reveal()) as control_plane:
            with PlatformClient(url, secret) as platform:
                follower = StreamFollower(control_plane, run_id)
                view = await _follow(control, platform, follower, run_id)
                elapsed = time.monotonic() - started
                return _summary(control, view, elapsed, platform, follower)


async def _follow(
    control: ControlClient, platform: "PlatformClient", follower: "StreamFollower", run_id: str
) -> RunView:
    """Follow the run's streams until it has an outcome and all records are read."""
    import asyncio

    waiting = asyncio.ensure_future(
        asyncio.to_thread(control.ask, WaitForRun(run_id=run_id), RunView)
    )
    with _progress() as show:
        while not waiting.done():
            await asyncio.wait({waiting}, timeout=_REFRESH)
            follower.follow(list(await asyncio.to_thread(_streams_of, platform, run_id)))
            show(follower.chunks)
        await follower.catch_up(await asyncio.to_thread(_streams_of, platform, run_id))
        show(follower.chunks)

    return await waiting


def _streams_of(platform: "PlatformClient", run_id: str) -> dict[str, int]:
    """Return the records of each stream of one run, by its key."""
    records = platform.stats().of_runs({run_id}).records

    return {name.partition("/")[2]: count for name, count in records.items()}


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[int], None]]:
    """Yield what shows the number of chunks read on one line of the terminal, if there is one."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.fields[chunks]:,} chunks read"),
        TextColumn("{task.fields[rate]:,.0f}/s"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        line = progress.add_task("streams", chunks=0, rate=0.0)
        started = time.monotonic()

        def show(chunks: int) -> None:
            rate = chunks / max(time.monotonic() - started, 1e-9)
            progress.update(line, chunks=chunks, rate=rate)

        yield show


def _summary(
    control: ControlClient,
    view: RunView,
    duration: float,
    platform: "PlatformClient | None" = None,
    follower: "StreamFollower | None" = None,
) -> _Summary:
    tree = control.ask(GetTree(root_id=view.outcome.id), TreeView)
    run_ids = {node.outcome.id for node in tree.runs}
    stats = platform.stats().of_runs(run_ids) if platform is not None else None

    return _Summary(
        view=view,
        duration_s=round(duration, 3),
        workers=sorted({node.pid for node in tree.runs if node.pid is not None}),
        puts=sum(stats.puts.values()) if stats else 0,
        streams=stats.records if stats else {},
        chunks_read=follower.chunks if follower is not None else 0,
    )


def _document(summary: _Summary) -> dict[str, Any]:
    return {
        **run_document(summary.view),
        "puts": summary.puts,
        "streams": summary.streams,
        "chunks_read": summary.chunks_read,
        "workers": summary.workers,
        "duration_s": summary.duration_s,
    }


def _print_summary(summary: _Summary) -> None:
    from rich.console import Console
    from rich.table import Table

    outcome = summary.view.outcome
    written = sum(summary.streams.values())
    table = Table(title=f"{outcome.task}: {outcome.status}", show_header=False)
    for name, value in (
        ("run", outcome.id),
        ("chunks written", f"{written:,}"),
        ("chunks read back", f"{summary.chunks_read:,}"),
        ("PUTs", f"{summary.puts:,}"),
        ("workers used", f"{len(summary.workers):,}"),
        ("seconds", f"{summary.duration_s:.2f}"),
        ("chunks/s", f"{written / summary.duration_s:,.0f}"),
        ("output", (outcome.output or b"").decode()),
    ):
        table.add_row(name, value)
    Console().print(table)
    if outcome.error is not None:
        typer.echo(f"{outcome.error.type}: {outcome.error.message}", err=True)
        typer.echo(outcome.error.traceback, err=True)
