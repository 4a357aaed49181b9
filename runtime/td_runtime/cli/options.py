"""Options that several commands share, and what they are turned into."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from td_runtime.config import Config, find_config, load_config
from td_runtime.data_dir import DataDir
from td_runtime.errors import ControlPlaneUnavailableError, ExitCode, UsageError
from td_runtime.secret import Secret

__all__ = [
    "ConfigOption",
    "JsonOption",
    "PayloadOption",
    "control_plane_access",
    "load",
    "log_to_stderr",
    "print_json",
    "read_payload",
]

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "-c",
        "--config",
        metavar="FILE",
        help="The config file; else ./td-runtime.toml, then $TD_RUNTIME_CONFIG.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object, nothing else.")]
PayloadOption = Annotated[
    str | None,
    typer.Option(
        "--payload",
        metavar="JSON|@FILE|-",
        help="The payload: JSON text, @ and a file that holds it, or - for standard input.",
        show_default=False,
    ),
]


def load(config: Path | None) -> Config:
    """Find and load the config file that the ``-c`` option means."""
    return load_config(find_config(config))


def log_to_stderr() -> None:
    """Have what libraries and ours log in this command go to stderr, as stdout is for answers."""
    import socket

    from td_runtime import logs

    chosen = logs.resolve_format("auto", 2)
    logs.configure(None, format=chosen, level="warning", host=socket.gethostname(), worker=None)


def read_payload(option: str | None) -> bytes:
    """Return the payload that ``--payload`` means as JSON text; null without one.

    Raises:
        UsageError: The file cannot be read, or what was given is not JSON; names where and what.
    """
    if option is None:
        return b"null"
    text, where = _payload_source(option)
    try:
        msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        shown = text[:80].decode(errors="replace") + ("…" if len(text) > 80 else "")
        raise UsageError(
            f"the payload is not JSON: {error}; got {shown!r}",
            where=where,
            advice="A string needs quotes inside the quotes: --payload '\"hello\"'.",
        ) from error

    return text


def _payload_source(option: str) -> tuple[bytes, str]:
    if option == "-":
        # A closed standard input has no text, like an empty one.
        text = sys.stdin.buffer.read() if sys.stdin is not None else b""
        return text, "--payload - (standard input)"
    if not option.startswith("@"):
        return os.fsencode(option), "--payload"
    path = Path(option[1:])
    try:
        return path.read_bytes(), f"--payload {option}"
    except OSError as error:
        raise UsageError(
            f"the payload's file cannot be read: {error.strerror}",
            where=f"--payload {option}",
            advice="Name a file that exists, after the @.",
        ) from error


def control_plane_access(config: Config) -> tuple[str, Secret]:
    """Return URL and API key of the control plane that *config* means.

    Raises:
        ControlPlaneUnavailableError: It is the embedded one, and was never started.
    """
    data_dir = DataDir(config.runtime.data_dir)
    key = config.control_plane.secret_key
    try:
        secret = key if key is not None else data_dir.read_secret()
    except FileNotFoundError as error:
        raise _never_started(data_dir) from error
    if not config.control_plane.is_embedded:
        return config.control_plane.url, secret
    port = data_dir.read_port()
    if port is None:
        raise _never_started(data_dir)
    host = config.gateway.listen.host

    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}", secret


def _never_started(data_dir: DataDir) -> ControlPlaneUnavailableError:
    return ControlPlaneUnavailableError(
        "the embedded control plane was never started here",
        where=str(data_dir.path),
        advice="Start it with `td-runtime start`, with the same config file.",
    )


def print_json(document: Any) -> None:
    """Print *document* as one line of JSON on stdout.

    Raises:
        typer.Exit: The reader of stdout has enough (`… | head`), which is no failure.
    """
    try:
        typer.echo(msgspec.json.encode(document).decode())
    except BrokenPipeError:
        # What is left in the buffer would be written, and fail, once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise typer.Exit(ExitCode.OK) from None
