"""``td-runtime start``."""

import contextlib
import os
from typing import Annotated

import typer

from td_runtime.cli.options import ConfigOption, load
from td_runtime.config import Config
from td_runtime.errors import ExitCode

__all__ = ["start"]


def start(
    config: ConfigOption = None,
    allow_faults: Annotated[
        bool, typer.Option("--allow-faults", help="Let `platform fault` break things, for tests.")
    ] = False,
    reload: Annotated[
        bool,
        typer.Option("--reload", help="Reload when task code or the config file changes."),
    ] = False,
    owner_fd: Annotated[int | None, typer.Option(hidden=True)] = None,
    log_to_stderr: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Run the supervisor, its workers and the gateway in the foreground.

    SIGTERM or Ctrl-C drains: running runs get `drain_timeout`, then the rest is requeued. A second
    one stops at once.
    """
    # Here and not above: the other commands need neither its import time nor its memory.
    from td_runtime.start_imports import imports_without_extras

    with imports_without_extras():
        from td_runtime.start import start as start_supervisor

    if owner_fd is not None:
        os.set_inheritable(owner_fd, False)
    loaded = load(config)
    with _reloading(loaded) if reload else contextlib.nullcontext():
        start_supervisor(
            loaded,
            log_to=2 if log_to_stderr else 1,
            allow_faults=allow_faults,
            owner_fd=owner_fd,
        )
    # All is closed and said; to take apart what was imported would hold up a stop for 40 ms.
    os._exit(ExitCode.OK)


def _reloading(config: Config) -> contextlib.AbstractContextManager[None]:
    from td_runtime.code_watch import reloading_on_changes

    return reloading_on_changes(config)
