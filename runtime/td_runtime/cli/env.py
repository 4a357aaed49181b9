"""``td-runtime env``."""

import shlex

import typer

from td_runtime.cli.options import ConfigOption, control_plane_access, load

__all__ = ["env"]


def env(config: ConfigOption = None) -> None:
    """Print shell exports that let the official SDKs talk to the gateway.

    Use: eval "$(td-runtime env)"
    """
    url, secret = control_plane_access(load(config))
    typer.echo(f"export TRIGGER_API_URL={shlex.quote(url)}")
    typer.echo(f"export TRIGGER_SECRET_KEY={shlex.quote(secret.reveal())}")
