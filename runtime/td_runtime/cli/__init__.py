"""The command line: one file a sub-command. Errors are told in words and end in a named code."""

import sys

from td_runtime.cli.app import COMMANDS, make_app
from td_runtime.errors import TdRuntimeError

__all__ = ["main"]


def main() -> None:
    """Be ``td-runtime``: carry out the command line and exit with a code of design §10."""
    called = sys.argv[1] if len(sys.argv) > 1 else None
    try:
        make_app(called if called in COMMANDS else None)()
    except TdRuntimeError as error:
        print(f"td-runtime: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
