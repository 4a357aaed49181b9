"""``td-runtime run``: start, one run, drain, and exit with its result."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from td_runtime.cli.options import (
    ConfigOption,
    JsonOption,
    PayloadOption,
    connect,
    control_plane_access,
    load,
    log_to_stderr,
    print_json,
    read_payload,
)
from td_runtime.cli.outcomes import run_document
from td_runtime.cli.trigger import ask_for_run
from td_runtime.cli.waiting import wait_for_run
from td_runtime.config import Config
from td_runtime.control import (
    ControlClient,
    ControlRefusedError,
    GetTree,
    RunView,
    TreeView,
)
from td_runtime.errors import ControlPlaneUnavailableError, ExitCode
from td_worker.messages import TriggerItem

if TYPE_CHECKING:
    from td_runtime.cli.follow import StreamFollower
    from td_runtime.gateway.client import PlatformClient, Stats

__all__ = ["run"]

_TOLD_IN_FULL = {"TaskPayloadError", "TaskOutputError", "OutputTooLargeError"}
"""Errors of runs whose message says it all; their traceback has frames of ours only."""

_PATIENCE = 30.0
"""Seconds for the gateway to come back, and for the last records to be read."""

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
    task: Annotated[str, typer.Argument(metavar="TASK", help="Id of the task.")],
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
    item = TriggerItem(task=task, payload=read_payload(payload))
    _check_task(loaded, item)
    log_to_stderr()
    _take_for_ctrl_c(signal.SIGTERM, signal.SIGHUP)
    try:
        with OwnedSupervisor(loaded.path, allow_faults=allow_faults):
            summary = asyncio.run(_execute(loaded, item))
    except KeyboardInterrupt:
        raise typer.Exit(ExitCode.FAILED) from None
    if json:
        print_json(_document(summary))
    else:
        _print_summary(summary)
    if summary.view.outcome.status != "COMPLETED":
        raise typer.Exit(ExitCode.FAILED)


def _check_task(config: Config, item: TriggerItem) -> None:
    """Refuse a task that there is not before a runtime is up, which executes what is left over.

    Raises:
        ControlRefusedError: There is no such task; says which there are.
    """
    from td_runtime.admission import TriggerError, check_task

    try:
        check_task(item, {each.id: each for each in config.tasks})
    except TriggerError as error:
        raise ControlRefusedError(str(error), where=str(config.path), code=error.code) from error


def _take_for_ctrl_c(*numbers: signal.Signals) -> None:
    """Stop in order when these come, too: else the supervisor would drain with nobody waiting.

    One that is ignored stays so: `nohup` wants it.
    """
    for number in numbers:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)


async def _execute(config: Config, item: TriggerItem) -> _Summary:
    from td_runtime.cli.follow import StreamFollower
    from td_runtime.gateway.client import PlatformClient
    from td_worker.control_plane import ControlPlane

    url, secret = control_plane_access(config)
    with connect(config) as control:
        started = time.monotonic()
        run_id = ask_for_run(control, config, item)
        if not config.control_plane.is_embedded:
            view = await wait_for_run(control, run_id)
            return _summary(control, view, time.monotonic() - started)
        async with ControlPlane(url, secret.reveal()) as control_plane:
            with PlatformClient(url, secret) as platform:
                follower = StreamFollower(control_plane, run_id)
                view, stats = await _follow(control, platform, follower, run_id)
                elapsed = time.monotonic() - started
                return _summary(control, view, elapsed, stats, follower)


async def _follow(
    control: ControlClient, platform: "PlatformClient", follower: "StreamFollower", run_id: str
) -> "tuple[RunView, Stats]":
    """Follow the run's streams until it has an outcome and all records are read."""
    import asyncio

    waiting = asyncio.ensure_future(wait_for_run(control, run_id))
    with _progress() as show:
        try:
            while not waiting.done():
                await asyncio.wait({waiting}, timeout=_REFRESH)
                await _look_for_streams(platform, follower, run_id)
                show(follower.chunks)
        finally:
            waiting.cancel()
            await asyncio.wait({waiting})
        view = waiting.result()
        stats = await _final_stats(platform)
        await _catch_up(follower, _streams_of(stats, run_id))
        show(follower.chunks)

    return view, stats


async def _look_for_streams(
    platform: "PlatformClient", follower: "StreamFollower", run_id: str
) -> None:
    import asyncio

    # A gateway that is being restarted is no reason to leave the run.
    with contextlib.suppress(ControlPlaneUnavailableError):
        stats = await asyncio.to_thread(platform.stats)
        follower.follow(list(_streams_of(stats, run_id)))


async def _final_stats(platform: "PlatformClient") -> "Stats":
    """Return what was counted, once the gateway tells."""
    import asyncio

    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return await asyncio.to_thread(platform.stats)
        except ControlPlaneUnavailableError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(_REFRESH)


async def _catch_up(follower: "StreamFollower", records: dict[str, int]) -> None:
    import asyncio

    try:
        async with asyncio.timeout(_PATIENCE):
            await follower.catch_up(records)
    except TimeoutError as error:
        raise ControlPlaneUnavailableError(
            f"the run has ended, but its {sum(records.values())} records cannot be read back",
            advice="Look at the log for why, and read them with `td-runtime streams read`.",
        ) from error


def _streams_of(stats: "Stats", run_id: str) -> dict[str, int]:
    """Return the records of each stream of one run, by its key."""
    records = stats.of_runs({run_id}).records

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
    counted: "Stats | None" = None,
    follower: "StreamFollower | None" = None,
) -> _Summary:
    tree = control.ask(GetTree(root_id=view.outcome.id), TreeView)
    run_ids = {node.outcome.id for node in tree.runs}
    stats = counted.of_runs(run_ids) if counted is not None else None

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
        if outcome.error.type not in _TOLD_IN_FULL:
            typer.echo(outcome.error.traceback, err=True)
