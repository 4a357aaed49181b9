"""The commands, put together: only the one that is called, and for help no more than names."""

from importlib import import_module
from typing import Annotated, Final

import typer

from td_runtime.errors import ExitCode

__all__ = ["COMMANDS", "make_app", "make_outline"]

COMMANDS: Final = {
    "start": (
        "start:start",
        "Run the supervisor, its workers and the gateway in the foreground.",
    ),
    "run": (
        "run:run",
        (
            "Start the runtime, execute one run of TASK, follow its streams, drain, exit with its "
            "result."
        ),
    ),
    "trigger": (
        "trigger:trigger",
        "Ask the running supervisor for a run of TASK, or for many.",
    ),
    "check": (
        "check:check",
        "Check the config file, its folders, every entrypoint, and that the control plane answers.",
    ),
    "status": (
        "status:status",
        "Show the running supervisor, its workers, runs, loops and schedules.",
    ),
    "stop": (
        "stop:stop",
        "Stop the running supervisor as SIGTERM does, and return when it is gone.",
    ),
    "drain": (
        "stop:drain",
        "Let runs under way end, however long they take, then stop; return when it is gone.",
    ),
    "env": (
        "env:env",
        "Print shell exports that let the official SDKs talk to the gateway.",
    ),
    "runs": ("runs:app", "Runs: what was asked for, and what became of it."),
    "tasks": ("tasks:app", "Tasks: what the config file says, and their runs."),
    "schedules": ("schedules:app", "Schedules: tasks that run by themselves."),
    "streams": ("streams:app", "Realtime streams of runs."),
    "credentials": ("credentials:app", "Credentials that the processes of this host share."),
    "store": ("store:app", "The run store: where runs are queued and recorded."),
    "platform": ("platform:app", "Look at the embedded platform, or break it on purpose."),
}
"""Where each command is, `module:function` or `module:app` of many, and what it is for.

What it is for is the first sentence of its own help, told here without loading it.
"""

_EXIT_CODES = "  \n".join(f"{int(code)}  {code.description}" for code in ExitCode)


def make_app(only: str | None = None) -> typer.Typer:
    """Return the command line.

    Args:
        only: The command that is called: the others are left out, since to import and describe
            them takes longer than a light command does. None: all.
    """
    app = _empty_app()
    for name, (place, _) in COMMANDS.items():
        if only in {None, name}:
            _add(app, name, place)

    return app


def make_outline() -> typer.Typer:
    """Return the command line as its own help shows it; none of the commands can be called."""
    app = _empty_app()
    for name, (_, purpose) in COMMANDS.items():
        app.command(name, help=purpose)(_be_named)

    return app


def _be_named() -> None:
    raise AssertionError("a command of the outline was called")


def _empty_app() -> typer.Typer:
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
