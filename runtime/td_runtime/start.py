"""The beginning of ``td-runtime start``: as little as the gateway needs to boot.

The gateway takes about as long to boot as the supervisor to import what it and its workers need,
so that is imported while the gateway boots: :mod:`td_runtime.supervisor` knows what is next.

Order: data folder → API key → log sink → gateway.
"""

import asyncio
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog

from td_runtime import __version__, logs
from td_runtime.config import Config
from td_runtime.data_dir import DataDir
from td_runtime.errors import ConfigError
from td_runtime.folders import prepare_folders
from td_runtime.gateway_process import GatewayProcess
from td_runtime.log_sink import LogSink
from td_runtime.secret import Secret
from td_runtime.service_manager import ServiceManager
from td_runtime.start_imports import imports_without_extras

if TYPE_CHECKING:
    from td_runtime.supervisor import Supervisor

__all__ = ["Ground", "control_plane_url", "start"]

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What a supervisor stands on; it outlives it."""

    data_dir: DataDir
    """Owned."""
    secret: Secret
    """The control plane's API key."""
    sink: LogSink
    log_format: logs.Format
    service: ServiceManager

    def configure_logs(
        self, config: Config, *, worker: int | None = None, ring: logs.LineRing | None = None
    ) -> None:
        """Have this process log to the sink as *config* says.

        Args:
            config: The configuration.
            worker: Its number, if this process is a worker.
            ring: Where its last lines are kept, too.
        """
        logs.configure(
            self.sink.fd,
            format=self.log_format,
            level=config.log.level,
            host=socket.gethostname(),
            worker=worker,
            max_line=config.limits.log_line,
            max_traceback=config.limits.traceback,
            ring=ring,
        )
        logs.register_secret(self.secret.reveal())


def start(
    config: Config,
    *,
    log_to: int = 1,
    allow_faults: bool = False,
    owner_fd: int | None = None,
) -> None:
    """Be the supervisor until told to stop.

    Args:
        config: The configuration.
        log_to: The descriptor log lines go to in the end, 1 or 2.
        allow_faults: Whether the gateway obeys ``platform fault``.
        owner_fd: Reads EOF when whoever started this supervisor is gone; then it stops, too.

    Raises:
        TdRuntimeError: What could not be started, or gave up; carries the exit code.
    """
    service = ServiceManager.from_environment()
    prepare_folders(config)
    data_dir = DataDir(config.runtime.data_dir)
    with data_dir.owned():
        log_format = logs.resolve_format(config.log.format, log_to)
        secret = config.control_plane.secret_key or data_dir.secret()
        sink = LogSink.start(out_fd=log_to, format=log_format, host=socket.gethostname())
        with sink:
            ground = Ground(
                data_dir=data_dir,
                secret=secret,
                sink=sink,
                log_format=log_format,
                service=service,
            )
            ground.configure_logs(config)
            _run(config, ground, allow_faults=allow_faults, owner_fd=owner_fd)


def _run(config: Config, ground: Ground, *, allow_faults: bool, owner_fd: int | None) -> None:
    log.info("runtime.started", version=__version__, **config.log_context())
    with asyncio.Runner() as runner:
        gateway = _start_gateway(config, ground, runner.get_loop(), allow_faults=allow_faults)
        try:
            supervisor = _supervisor_class(config)(config, ground, gateway, owner_fd=owner_fd)
            supervisor.prepare(runner.get_loop())
            runner.run(supervisor.run())
        except BaseException:
            # It would hold up the log sink's end, and the next start by its port.
            if gateway is not None:
                gateway.kill()
            raise
    log.info("runtime.stopped")
    supervisor.raise_failure()


def _supervisor_class(config: Config) -> "type[Supervisor]":
    """Get ready what the supervisor needs, and what its workers do: they share it."""
    with imports_without_extras(tls_is_likely=config.control_plane.url.startswith("https:")):
        from td_runtime.supervisor import Supervisor
        from td_worker.process import warm_up
    warm_up()

    return Supervisor


def control_plane_url(config: Config, data_dir: DataDir) -> str:
    """Return where the control plane is; the embedded one has chosen its port."""
    if not config.control_plane.is_embedded:
        return config.control_plane.url
    host = config.gateway.listen.host
    port = data_dir.read_port()

    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


# -------------------------------------------------------------------- gateway


def _start_gateway(
    config: Config, ground: Ground, loop: asyncio.AbstractEventLoop, *, allow_faults: bool
) -> GatewayProcess | None:
    """Start the gateway where it is the control plane."""
    if not config.control_plane.is_embedded:
        return None
    settings = {**_gateway_settings(config, ground), "allow_faults": allow_faults}
    gateway = GatewayProcess(
        settings, keep=(ground.sink.fd,), hidden=config.secret_variables, loop=loop
    )
    gateway.start()

    return gateway


def _gateway_settings(config: Config, ground: Ground) -> dict[str, Any]:
    return {
        "data_dir": str(ground.data_dir.path),
        "host": config.gateway.listen.host,
        "port": _choose_port(config, ground.data_dir),
        "secret_key": ground.secret.reveal(),
        "allow_origins": config.gateway.allow_origins,
        "log": {
            "format": ground.log_format,
            "level": config.log.level,
            "fd": ground.sink.fd,
        },
    }


def _choose_port(config: Config, data_dir: DataDir) -> int:
    listen = config.gateway.listen
    try:
        return data_dir.port(listen.host, listen.port)
    except OSError as error:
        raise ConfigError(
            f'{config.path}: gateway.listen = "{listen}": '
            f"nobody can listen there on this machine: {error.strerror}",
            where=str(config.path),
            advice='Name an address of this machine, such as "127.0.0.1:0".',
        ) from error
