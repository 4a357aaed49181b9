"""``td-runtime start``."""

import os
from typing import Annotated

import typer

from td_runtime.cli.options import ConfigOption, load

__all__ = ["start"]


def start(
    config: ConfigOption = None,
    allow_faults: Annotated[
        bool, typer.Option("--allow-faults", help="Let `platform fault` break things, for tests.")
    ] = False,
    owner_fd: Annotated[int | None, typer.Option(hidden=True)] = None,
    log_to_stderr: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Run the supervisor, its workers and the gateway in the foreground.

    SIGTERM or Ctrl-C drains: running runs get `drain_timeout`, then the rest is requeued. A second
    one stops at once.
    """
    # Here and not above: the other commands need neither its import time nor its memory.
    from td_runtime.supervisor import Supervisor

    if owner_fd is not None:
        os.set_inheritable(owner_fd, False)
    Supervisor(
        load(config),
        log_to=2 if log_to_stderr else 1,
        allow_faults=allow_faults,
        owner_fd=owner_fd,
    ).run()
