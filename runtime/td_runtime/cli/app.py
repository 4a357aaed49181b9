"""The commands, put together."""

from typing import Annotated

import typer

from td_runtime.cli import (
    check,
    credentials,
    env,
    platform,
    run,
    runs,
    schedules,
    start,
    status,
    stop,
    store,
    streams,
    tasks,
    trigger,
)
from td_runtime.errors import ExitCode

__all__ = ["app"]

_EXIT_CODES = "  \n".join(f"{int(code)}  {code.description}" for code in ExitCode)

app = typer.Typer(
    name="td-runtime",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Run Python tasks that write to Trigger.dev realtime streams.",
    epilog=f"**Exit codes**  \n{_EXIT_CODES}",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from td_runtime import __version__

        typer.echo(f"td-runtime {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Run Python tasks that write to Trigger.dev realtime streams."""


app.command("start")(start.start)
app.command("run")(run.run)

app.command("trigger")(trigger.trigger)
app.command("check")(check.check)
app.command("status")(status.status)
app.command("stop")(stop.stop)
app.command("drain")(stop.drain)
app.command("env")(env.env)


app.add_typer(runs.app, name="runs")
app.add_typer(tasks.app, name="tasks")
app.add_typer(schedules.app, name="schedules")
app.add_typer(streams.app, name="streams")
app.add_typer(credentials.app, name="credentials")
app.add_typer(store.app, name="store")
app.add_typer(platform.app, name="platform")
