"""What a forked child does as a worker: log as one, hide the API key, read what is printed."""

import asyncio
import os
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

from td_runtime import logs
from td_runtime.config import Config
from td_runtime.inspector import task_specs
from td_runtime.start import Ground
from td_worker.executor import Limits
from td_worker.process import run_worker
from td_worker.runtime import WorkerSettings

__all__ = ["be_worker"]


def be_worker(
    number: int,
    sock: socket.socket,
    ring: logs.LineRing,
    *,
    config: Config,
    ground: Ground,
    url: str,
) -> int:
    """Be worker *number* in the forked child, to its end; return its exit status.

    Args:
        number: Its place among the workers.
        sock: Its end of the pair that it shares with the supervisor.
        ring: Where its last lines are kept, for whoever finds it dead.
        config: The config at the fork.
        ground: What the supervisor stands on.
        url: Where the control plane is.
    """
    ground.configure_logs(config, worker=number, ring=ring)
    # Task code and what it starts must not find the key in their environment.
    for name in config.secret_variables:
        os.environ.pop(name, None)
    output = logs.CapturedOutput(logs.emit_printed)
    settings = _settings(number, config, ground, url, partial(_attach, output))
    with logs.capture_prints():
        status = run_worker(settings, sock)
    logs.close()

    return status


def _settings(
    number: int, config: Config, ground: Ground, url: str, attach: Callable[..., None]
) -> WorkerSettings:
    return WorkerSettings(
        number=number,
        tasks=task_specs(config),
        import_path=str(config.folder),
        lock_file=str(ground.data_dir.workers_lock),
        control_plane_url=url,
        credentials_dir=Path(config.credentials.dir),
        max_age=config.credentials.max_age,
        concurrency=config.runtime.concurrency,
        limits=Limits(
            output_bytes=config.limits.output,
            traceback_bytes=config.limits.traceback,
            stream_drain=config.runtime.drain_timeout,
            cancel_grace=config.runtime.cancel_grace,
        ),
        max_runs=config.runtime.max_runs_per_worker,
        max_memory=config.runtime.max_memory_per_worker,
        stalled_after=config.runtime.stalled_after,
        kill_stalled_after=config.runtime.kill_stalled_after,
        log_together=logs.together,
        attach=attach,
    )


def _attach(output: logs.CapturedOutput, loop: asyncio.AbstractEventLoop) -> None:
    """Have *loop* read what task code writes to descriptors 1 and 2."""

    def read(reader: int) -> None:
        if not output.read(reader):
            loop.remove_reader(reader)

    for reader in output.readers:
        loop.add_reader(reader, read, reader)
