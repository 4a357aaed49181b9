"""Options that several commands share, and what they are turned into."""

import os
import pwd
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from td_runtime.config import Config, find_config, load_config
from td_runtime.errors import ControlPlaneUnavailableError, ExitCode, UsageError
from td_runtime.secret import Secret
from td_runtime.units import parse_duration

if TYPE_CHECKING:
    from td_runtime.control import ControlClient
    from td_runtime.data_dir import DataDir

__all__ = [
    "ConfigOption",
    "JsonOption",
    "PayloadOption",
    "connect",
    "control_plane_access",
    "excerpt",
    "load",
    "log_to_stderr",
    "print_json",
    "read_metadata",
    "read_moment",
    "read_payload",
    "read_seconds",
    "write_text",
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


def connect(config: Config) -> "ControlClient":
    """Connect to the running supervisor, and tell it who asks: it is recorded with the runs.

    Raises:
        NotRunningError: There is none.
    """
    from td_runtime.control import ControlClient
    from td_runtime.data_dir import DataDir

    return ControlClient(DataDir(config.runtime.data_dir), name=f"cli: {_user()}")


def _user() -> str:
    """Return who is logged in, or the number of a user without a name, as in a container."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def read_payload(option: str | None) -> bytes:
    """Return the payload that ``--payload`` means as JSON text; null without one.

    Raises:
        UsageError: The file cannot be read, or what was given is not JSON; names where and what.
    """
    if option is None:
        return b"null"

    return _read_json(
        option,
        "--payload",
        not_json="the payload is not JSON",
        not_read="the payload's file cannot be read",
    )


def read_metadata(option: str | None) -> bytes | None:
    """Return the metadata that ``--metadata`` means as JSON text; raises as the payload."""
    if option is None:
        return None

    return _read_json(
        option,
        "--metadata",
        not_json="the metadata is not JSON",
        not_read="the metadata's file cannot be read",
    )


def _read_json(option: str, name: str, *, not_json: str, not_read: str) -> bytes:
    """Return the JSON text that an option means: the text, @ and a file, or - for stdin."""
    text, where = _source(option, name, not_read)
    try:
        msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise UsageError(
            f"{not_json}: {error}; got {excerpt(text)}",
            where=where,
            advice=f"A string needs quotes inside the quotes: {name} '\"hello\"'.",
        ) from error

    return text


def excerpt(text: bytes) -> str:
    """Return the beginning of a text that somebody gave, for the message about it."""
    return repr(text[:80].decode(errors="replace") + ("…" if len(text) > 80 else ""))


def _source(option: str, name: str, not_read: str) -> tuple[bytes, str]:
    if option == "-":
        # A closed standard input has no text, like an empty one.
        text = sys.stdin.buffer.read() if sys.stdin is not None else b""
        return text, f"{name} - (standard input)"
    if not option.startswith("@"):
        return os.fsencode(option), name
    try:
        return Path(option[1:]).read_bytes(), f"{name} {option}"
    except OSError as error:
        raise UsageError(
            f"{not_read}: {error.strerror}",
            where=f"{name} {option}",
            advice="Name a file that exists, after the @.",
        ) from error


def read_seconds(text: str, option: str) -> float:
    """Return the seconds that a duration says.

    Raises:
        UsageError: It is none.
    """
    try:
        return parse_duration(text)
    except ValueError as error:
        raise UsageError(
            f"{text!r} is no duration", where=option, advice="Write it as 200ms, 2s or 1m30s."
        ) from error


def read_moment(text: str, option: str, *, ago: bool) -> float:
    """Return the time that *text* says, in seconds since the epoch.

    Args:
        text: A duration, which counts from now, or a date with or without time and zone.
        option: Whose value it is.
        ago: Whether a duration leads into the past.

    Raises:
        UsageError: It is neither.
    """
    try:
        seconds = parse_duration(text)
    except ValueError:
        return _read_date(text, option)

    return time.time() + (-seconds if ago else seconds)


def _read_date(text: str, option: str) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError) as error:
        raise UsageError(
            f"{text!r} is neither a duration nor a time",
            where=option,
            advice="Write 90s or 2h, or a time such as 2026-11-23T14:00 (of this host) "
            "or 2026-11-23T14:00Z.",
        ) from error


def control_plane_access(config: Config) -> tuple[str, Secret]:
    """Return URL and API key of the control plane that *config* means.

    Raises:
        ControlPlaneUnavailableError: It is the embedded one, and was never started.
    """
    from td_runtime.data_dir import DataDir

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


def _never_started(data_dir: "DataDir") -> ControlPlaneUnavailableError:
    return ControlPlaneUnavailableError(
        "the embedded control plane was never started here",
        where=str(data_dir.path),
        advice="Start it with `td-runtime start`, with the same config file.",
    )


def print_json(document: Any) -> None:
    """Print *document* as one line of JSON on stdout; raises as :func:`write_text`."""
    write_text(msgspec.json.encode(document))


def write_text(text: bytes) -> None:
    """Print JSON text as one line on stdout.

    Raises:
        typer.Exit: The reader of stdout has enough (`… | head`), which is no failure.
    """
    try:
        typer.echo(text.decode())
    except BrokenPipeError:
        # What is left in the buffer would be written, and fail, once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise typer.Exit(ExitCode.OK) from None
