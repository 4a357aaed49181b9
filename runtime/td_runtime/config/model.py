"""The configuration as frozen objects. Each field's annotation carries its rule.

Durations are seconds, sizes are bytes. A config read from a file has been checked as a whole; one
made by hand in a test is taken as it is.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from td_runtime.config.places import (
    Folder,
    Listen,
    ListenAddress,
    Origins,
    SecretKey,
    Url,
)
from td_runtime.config.rules import (
    Choice,
    CronPattern,
    Duration,
    Entrypoint,
    HookPlaces,
    Number,
    Size,
    Switch,
    TaskId,
    TimeZone,
    WholeNumber,
)
from td_runtime.secret import Secret
from td_runtime.units import Bytes, Seconds

if TYPE_CHECKING:
    from td_runtime.schedule import Schedule

__all__ = [
    "Config",
    "ControlPlaneConfig",
    "CredentialsConfig",
    "GatewayConfig",
    "LimitsConfig",
    "LogConfig",
    "RetryConfig",
    "RuntimeConfig",
    "StoreConfig",
    "TaskConfig",
]

_ANY_LOOPBACK_PORT = ListenAddress(host="127.0.0.1", port=0)
_DAY = 86_400.0
_KIB = 1 << 10
_MIB = 1 << 20


def _count_cpus() -> int:
    """CPUs this process may use, which in a container or under `taskset` are not all there are."""
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeConfig:
    """`[runtime]`: the supervisor and its workers."""

    data_dir: Annotated[Path, Folder(".td-runtime")]
    """Folder of the run store, the secret and the sockets; made with mode 0700."""
    workers: Annotated[int, WholeNumber(1, 1024)] = field(default_factory=_count_cpus)
    """Worker processes; default: the CPUs this process may use."""
    concurrency: Annotated[int, WholeNumber(1, 10_000)] = 10
    """Runs that one worker executes at once."""
    drain_timeout: Annotated[Seconds, Duration(0, _DAY)] = 30.0
    """Seconds that running runs and their streams get to end before they are requeued."""
    cancel_grace: Annotated[Seconds, Duration(0.01, _DAY)] = 30.0
    """Seconds that a run gets to end after its cancellation, or the end of its time; then its
    worker is killed."""
    hooks: Annotated[tuple[str, ...], HookPlaces()] = ()
    """Where the hooks of all tasks are."""
    stalled_after: Annotated[Seconds, Duration(0.1, _DAY)] = 10.0
    """Seconds that task code may block the loop of its worker before the log says where."""
    kill_stalled_after: Annotated[Seconds | None, Duration(0.1, _DAY)] = None
    """Seconds after which such a worker is killed; None: never."""
    kill_silent_after: Annotated[Seconds, Duration(0.4, _DAY)] = 60.0
    """Seconds after which a worker that has runs and gives no answer at all is killed."""
    max_runs_per_worker: Annotated[int | None, WholeNumber(1, 1_000_000_000)] = None
    """Runs after which a worker is replaced, up to a tenth less; None: any number."""
    max_memory_per_worker: Annotated[Bytes | None, Size(16 * _MIB, 1 << 50)] = None
    """Memory above which a worker is replaced, up to a tenth less; None: it may grow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlPlaneConfig:
    """`[control_plane]`: who mints credentials."""

    url: Annotated[str, Url()] = "embedded"
    """"embedded" for the runtime's own gateway, else the base URL, without a trailing slash."""
    secret_key: Annotated[Secret | None, SecretKey()] = None
    """The API key; None (embedded only): generated once into `data_dir/secret`."""

    @property
    def is_embedded(self) -> bool:
        """Whether the gateway of this host is the control plane."""
        return self.url == "embedded"


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialsConfig:
    """`[credentials]`: the cache that all processes of the host share."""

    dir: Annotated[Path, Folder("~/.cache/td-runtime/credentials")]
    """Folder of the shared cache; on a local disk, one a host and user."""
    max_age: Annotated[Seconds, Duration(60, _DAY)] = 6 * 3600.0
    """Seconds after its mint that a credential is still used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """`[gateway]`: the one HTTP server."""

    listen: Annotated[ListenAddress, Listen()] = _ANY_LOOPBACK_PORT
    """Where to listen; port 0 is chosen once a data folder, then kept."""
    allow_other_interfaces: Annotated[bool, Switch()] = False
    """Must be true for `listen` to name anything but loopback."""
    allow_origins: Annotated[tuple[str, ...], Origins()] = ()
    """Web pages of other origins whose requests are answered (CORS)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    """`[log]`: the lines on stdout."""

    format: Annotated[Literal["auto", "json", "pretty"], Choice(("auto", "json", "pretty"))] = (
        "auto"
    )
    """"auto": pretty when stdout is a terminal, else one JSON object a line."""
    level: Annotated[
        Literal["debug", "info", "warning", "error"], Choice(("debug", "info", "warning", "error"))
    ] = "info"
    """The least important level that is written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsConfig:
    """`[limits]`: what is refused or cut before it hurts."""

    payload: Annotated[Bytes, Size(_KIB, 15 * _MIB)] = 10 * _MIB
    """Largest payload of a run, as JSON. Messages between processes end at 16 MiB."""
    output: Annotated[Bytes, Size(_KIB, 15 * _MIB)] = 10 * _MIB
    """Largest output of a run, as JSON."""
    traceback: Annotated[Bytes, Size(_KIB, _MIB)] = 64 * _KIB
    """A longer traceback is cut in the middle."""
    batch: Annotated[int, WholeNumber(1, 10_000)] = 500
    """Most runs that one batch trigger starts."""
    max_queued: Annotated[int, WholeNumber(1, 100_000_000)] = 100_000
    """Runs waiting in the queue at which further ones are refused."""
    log_line: Annotated[Bytes, Size(_KIB, 128 * _KIB)] = 64 * _KIB
    """A longer log line is cut and marked."""
    metadata: Annotated[Bytes, Size(_KIB, 15 * _MIB)] = 256 * _KIB
    """Largest metadata of a run, as JSON."""
    tags: Annotated[int, WholeNumber(0, 1000)] = 10
    """Most tags of a run."""
    tag_length: Annotated[int, WholeNumber(1, 10_000)] = 128
    """Most characters of a tag."""
    key_length: Annotated[int, WholeNumber(1, 10_000)] = 2048
    """Most characters of an idempotency key or a concurrency key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreConfig:
    """`[store]`: how long finished runs are kept."""

    retention_age: Annotated[Seconds, Duration(1, 3650 * _DAY)] = 30 * _DAY
    """Seconds after its end that a run is deleted."""
    retention_count: Annotated[int, WholeNumber(0, 1_000_000_000)] = 1_000_000
    """Finished runs above which the oldest are deleted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryConfig:
    """`retry` of a task: attempt n waits min_timeout x factor^(n - 1), at most max_timeout."""

    max_attempts: Annotated[int, WholeNumber(1, 1000)] = 3
    """Attempts in all, the first included; 1 never retries."""
    factor: Annotated[float, Number(1, 100)] = 2.0
    """What each wait is multiplied by."""
    min_timeout: Annotated[Seconds, Duration(0, _DAY)] = 1.0
    """Seconds before the second attempt."""
    max_timeout: Annotated[Seconds, Duration(0, 30 * _DAY)] = 60.0
    """Seconds that a wait never exceeds."""
    randomize: Annotated[bool, Switch()] = True
    """Whether a wait is multiplied by a random number from 1 to 2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskConfig:
    """One `[[tasks]]` table."""

    id: Annotated[str, TaskId()]
    """What `trigger` calls it; unique in the file."""
    entrypoint: Annotated[str, Entrypoint()]
    """`module:function`; the config file's folder is searched after `sys.path`."""
    hooks: Annotated[tuple[str, ...], HookPlaces()] = ()
    """Where this task's own hooks are."""
    concurrency: Annotated[int | None, WholeNumber(1, 1_000_000)] = None
    """Runs of this task's queue at once on the host; None: as many as fit."""
    concurrency_per_key: Annotated[int | None, WholeNumber(1, 1_000_000)] = None
    """Of them, runs with the same concurrency key at once; None: no limit of their own."""
    queue: Annotated[str | None, TaskId()] = None
    """The queue its runs wait in, which tasks may share; None: one of its own, `task/<id>`."""
    ttl: Annotated[Seconds | None, Duration(0.01, 365 * _DAY)] = None
    """Seconds after which a run that has not started expires; None: never."""
    cron: Annotated[str | None, CronPattern()] = None
    """When it runs by itself; None: only when it is triggered."""
    timezone: Annotated[str, TimeZone()] = "UTC"
    """Where the hours of `cron` are told."""
    missed_ticks: Annotated[Literal["run_once", "skip"], Choice(("run_once", "skip"))] = "run_once"
    """What becomes of ticks that nobody was there for: the newest one runs, or none."""
    replicas: Annotated[int, WholeNumber(0, 10_000)] = 0
    """How many runs of it are kept alive for ever; 0: it is no loop."""
    retry: RetryConfig = RetryConfig()
    """When a failed run is tried again."""
    max_duration: Annotated[Seconds | None, Duration(0.01, 365 * _DAY)] = None
    """Seconds one attempt may take; None: no limit."""
    max_crashes: Annotated[int, WholeNumber(1, 1000)] = 3
    """Worker deaths blamed on a run after which it is CRASHED."""
    fail_on_stream_loss: Annotated[bool, Switch()] = False
    """Whether a run that lost stream records is FAILED instead of COMPLETED."""

    @property
    def schedule(self) -> Schedule | None:
        """When it runs by itself, if it does."""
        from td_runtime.schedule import Schedule

        if self.cron is None:
            return None

        return Schedule(pattern=self.cron, timezone=self.timezone, missed=self.missed_ticks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """One td-runtime.toml, environment variables applied."""

    path: Path
    """The file, absolute."""
    runtime: RuntimeConfig
    control_plane: ControlPlaneConfig = ControlPlaneConfig()
    credentials: CredentialsConfig
    gateway: GatewayConfig = GatewayConfig()
    log: LogConfig = LogConfig()
    limits: LimitsConfig = LimitsConfig()
    store: StoreConfig = StoreConfig()
    tasks: tuple[TaskConfig, ...] = ()
    secret_variables: frozenset[str] = frozenset()
    """Environment variables that hold the secret key: to be removed before task code runs."""

    @property
    def folder(self) -> Path:
        """The config file's folder, which tasks are imported from."""
        return self.path.parent

    def log_context(self) -> dict[str, object]:
        """What a log line says about this config; secrets never join it."""
        return {
            "config": str(self.path),
            "data_dir": str(self.runtime.data_dir),
            "workers": self.runtime.workers,
            "concurrency": self.runtime.concurrency,
            "control_plane": self.control_plane.url,
            "tasks": [task.id for task in self.tasks],
        }
