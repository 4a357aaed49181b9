"""The command line: one file a sub-command. Errors are told in words and end in a named code."""

import sys

import typer

from td_runtime.cli.app import COMMANDS, make_app, make_outline
from td_runtime.errors import TdRuntimeError

__all__ = ["main"]


def main() -> None:
    """Be ``td-runtime``: carry out the command line and exit with a code of design §10."""
    try:
        _app_for(sys.argv[1] if len(sys.argv) > 1 else None)()
    except TdRuntimeError as error:
        print(f"td-runtime: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _app_for(called: str | None) -> typer.Typer:
    """Load what that first word needs: everything for one that is none of ours, or for none."""
    if called in {"--help", "-h", "--version"}:
        return make_outline()

    return make_app(called if called in COMMANDS else None)
