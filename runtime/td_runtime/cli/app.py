"""The commands, put together: all of them for help, and only the one that is called otherwise."""

from importlib import import_module
from typing import Annotated, Final

import typer

from td_runtime.errors import ExitCode

__all__ = ["COMMANDS", "make_app"]

COMMANDS: Final = {
    "start": "start:start",
    "run": "run:run",
    "trigger": "trigger:trigger",
    "check": "check:check",
    "status": "status:status",
    "stop": "stop:stop",
    "drain": "stop:drain",
    "env": "env:env",
    "runs": "runs:app",
    "tasks": "tasks:app",
    "schedules": "schedules:app",
    "streams": "streams:app",
    "credentials": "credentials:app",
    "store": "store:app",
    "platform": "platform:app",
}
"""Where each command is, in the order of the help: `module:function`, or `module:app` of many."""

_EXIT_CODES = "  \n".join(f"{int(code)}  {code.description}" for code in ExitCode)


def make_app(only: str | None = None) -> typer.Typer:
    """Return the command line.

    Args:
        only: The command that is called: the others are left out, since to import and describe
            them takes longer than a light command does. None: all.
    """
    app = typer.Typer(
        name="td-runtime",
        no_args_is_help=True,
        rich_markup_mode="markdown",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        help="Run Python tasks that write to Trigger.dev realtime streams.",
        epilog=f"**Exit codes**  \n{_EXIT_CODES}",
    )
    app.callback()(_options)
    for name, place in COMMANDS.items():
        if only in {None, name}:
            _add(app, name, place)

    return app


def _add(app: typer.Typer, name: str, place: str) -> None:
    module, _, attribute = place.partition(":")
    command = getattr(import_module(f"td_runtime.cli.{module}"), attribute)
    if isinstance(command, typer.Typer):
        app.add_typer(command, name=name)
    else:
        app.command(name)(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        from td_runtime import __version__

        typer.echo(f"td-runtime {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Run Python tasks that write to Trigger.dev realtime streams."""
