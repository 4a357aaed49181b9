"""``td-runtime check``."""

import typer

from td_runtime.cli.options import ConfigOption, control_plane_access, load
from td_runtime.config import Config
from td_runtime.control import ControlClient, GetStatus, NotRunningError, StatusView
from td_runtime.data_dir import DataDir
from td_runtime.errors import ControlPlaneUnavailableError
from td_runtime.folders import check_folders

__all__ = ["check"]


def check(config: ConfigOption = None) -> None:
    """Check the config file, its folders, every entrypoint, and that the control plane answers.

    Changes nothing, and can be called beside a running supervisor.
    """
    from td_runtime.inspector import inspect_tasks

    loaded = load(config)
    typer.echo(f"ok  config {loaded.path}")
    check_folders(loaded)
    typer.echo(f"ok  folders {loaded.runtime.data_dir}, {loaded.credentials.dir}")
    for facts in inspect_tasks(loaded):
        typer.echo(f"ok  task {facts.id}: {facts.signature}")
    typer.echo(f"ok  control plane {_check_control_plane(loaded)}")


def _check_control_plane(config: Config) -> str:
    if config.control_plane.is_embedded and not _is_running(config):
        return "embedded; starts with `td-runtime start`"
    import asyncio

    url, secret = control_plane_access(config)
    asyncio.run(_ping(url, secret.reveal()))

    return f"{url} answers"


def _is_running(config: Config) -> bool:
    try:
        with ControlClient(DataDir(config.runtime.data_dir)) as client:
            client.ask(GetStatus(), StatusView)
    except NotRunningError:
        return False

    return True


async def _ping(url: str, secret_key: str) -> None:
    from td_worker.control_plane import ControlPlane
    from td_worker.errors import ControlPlaneError

    control_plane = ControlPlane(url, secret_key)
    try:
        await control_plane.ping()
    except ControlPlaneError as error:
        raise ControlPlaneUnavailableError(
            str(error),
            where=url,
            advice="Check [control_plane] url and secret_key, or TRIGGER_API_URL and "
            "TRIGGER_SECRET_KEY.",
        ) from error
    finally:
        await control_plane.close()
