"""The command line: one file a sub-command. Errors are told in words and end in a named code."""

import contextlib
import sys

from td_runtime.cli.app import app
from td_runtime.errors import ExitCode, TdRuntimeError

__all__ = ["main"]


def main() -> None:
    """Be ``td-runtime``: carry out the command line and exit with a code of design §10."""
    try:
        app()
    except TdRuntimeError as error:
        print(f"td-runtime: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader of our output has enough (`td-runtime … | head`): nobody is left to be told.
        with contextlib.suppress(OSError):
            sys.stderr.close()
        sys.exit(ExitCode.OK)
