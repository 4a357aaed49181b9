"""Finding the config file and reading it."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from td_runtime.config.decode import Decoder
from td_runtime.config.model import Config
from td_runtime.data_dir import DataDir
from td_runtime.errors import ConfigError

__all__ = ["DEFAULT_NAME", "find_config", "load_config"]

#: The file that is looked for in the working folder.
DEFAULT_NAME: Final = "td-runtime.toml"
_TRIGGER: Final = frozenset({"TRIGGER_API_URL", "TRIGGER_SECRET_KEY"})
_TOML_PLACE: Final = re.compile(r"(?P<what>.*) \(at (?:line (\d+), column (\d+)|end of document)\)")


def find_config(explicit: Path | None = None, *, env: Mapping[str, str] | None = None) -> Path:
    """Choose the config file: the one given, else ./td-runtime.toml, else $TD_RUNTIME_CONFIG.

    Returns:
        An absolute path of a file that exists.

    Raises:
        ConfigError: There is none; the message lists what was tried.
    """
    env = os.environ if env is None else env
    if explicit is not None:
        return _require_file(explicit, "given with -c")
    if Path(DEFAULT_NAME).is_file():
        return Path(DEFAULT_NAME).absolute()
    if env.get("TD_RUNTIME_CONFIG"):
        return _require_file(Path(env["TD_RUNTIME_CONFIG"]), "named by TD_RUNTIME_CONFIG")

    raise ConfigError(
        f"no config file: tried {Path(DEFAULT_NAME).absolute()}, and TD_RUNTIME_CONFIG is not set",
        advice=f"give one with -c FILE, or make {DEFAULT_NAME} with a [[tasks]] table that has an "
        'id and an entrypoint = "module:function"',
    )


def load_config(path: Path, env: Mapping[str, str] | None = None) -> Config:
    """Read, decode and check one file, environment variables applied.

    Args:
        path: The file.
        env: The environment; default: the process's own.

    Raises:
        ConfigError: Something is wrong; `problems` has one line for each thing.
    """
    path = path.absolute()
    env = os.environ if env is None else env
    tables = _read_toml(path)
    config = _decode(path, tables, env)
    if _points_at_itself(config, env):
        config = _decode(path, tables, {name: env[name] for name in env if name not in _TRIGGER})

    return config


def _decode(path: Path, tables: dict[str, object], env: Mapping[str, str]) -> Config:
    decoder = Decoder(path, env)
    config = decoder.decode(tables)
    if config is None:
        raise ConfigError(
            problems=tuple(decoder.problems),
            where=str(path),
            advice="correct it, then try `td-runtime check`; docs/reference/configuration.md lists "
            "every key",
        )

    return config


def _points_at_itself(config: Config, env: Mapping[str, str]) -> bool:
    """Whether TRIGGER_API_URL is this very data folder's own gateway.

    `td-runtime env` prints it for other programs. In a shell that has evaluated that, a supervisor
    would otherwise wait for a control plane that nobody but itself could start.
    """
    if config.control_plane.url != env.get("TRIGGER_API_URL", "").rstrip("/"):
        return False
    url = urlsplit(config.control_plane.url)
    is_here = url.hostname in ("localhost", "127.0.0.1", "::1", config.gateway.listen.host)

    return is_here and url.port == DataDir(config.runtime.data_dir).read_port()


def _require_file(path: Path, how: str) -> Path:
    if not path.is_file():
        raise ConfigError(
            f"{path}: no such file ({how})",
            where=str(path.absolute()),
            advice="check the path, or leave it out to use ./td-runtime.toml",
        )

    return path.absolute()


def _read_toml(path: Path) -> dict[str, object]:
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror}",
            where=str(path),
            advice="check that it exists, and that this user may read it",
        ) from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"{path}:{line}: is not UTF-8 text", where=f"{path}:{line}", advice="save it as UTF-8"
        ) from error

    return _parse_toml(path, text)


def _parse_toml(path: Path, text: str) -> dict[str, object]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place, what = _locate(str(error), text)
    except RecursionError:
        place, what = "1:1", "Arrays are nested too deeply"

    raise ConfigError(
        f"{path}:{place}: {what}",
        where=f"{path}:{place}",
        advice='the file is not TOML; strings need quotes, as in level = "info"',
    )


def _locate(message: str, text: str) -> tuple[str, str]:
    """Take "line:column" out of a parser's message; the end of the file if it names none."""
    match = _TOML_PLACE.fullmatch(message)
    if match and match[2]:
        return f"{match[2]}:{match[3]}", match["what"]
    lines = text.split("\n")
    place = f"{len(lines)}:{len(lines[-1]) + 1}"

    return place, match["what"] if match else message
