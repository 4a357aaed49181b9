"""The folders that the config names, looked at before anything is started in them."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from td_runtime.config import Config
from td_runtime.data_dir import DataDir
from td_runtime.errors import StoreError
from td_sharedcache import CacheDirectoryError
from td_sharedcache.folder import ensure_private

__all__ = ["check_folders", "prepare_folders"]


def prepare_folders(config: Config) -> None:
    """Make the data folder and the credential folder, or check that they are ours alone.

    A credential folder that cannot be made, or is full or read-only, is no reason to refuse:
    workers do without (C9).

    Raises:
        StoreError: One cannot be used; names file, key and value.
    """
    with _naming(config, "runtime.data_dir", config.runtime.data_dir):
        DataDir(config.runtime.data_dir).prepare()
    with _naming(config, "credentials.dir", config.credentials.dir), contextlib.suppress(OSError):
        ensure_private(config.credentials.dir)


def check_folders(config: Config) -> None:
    """Do what `prepare_folders` does, but make nothing.

    Raises:
        StoreError: One cannot be used; names file, key and value.
    """
    with _naming(config, "runtime.data_dir", config.runtime.data_dir):
        data_dir = DataDir(config.runtime.data_dir)
        data_dir.check()
        if config.control_plane.secret_key is None:
            with contextlib.suppress(FileNotFoundError):
                data_dir.read_secret()
    if config.credentials.dir.exists():
        with _naming(config, "credentials.dir", config.credentials.dir):
            ensure_private(config.credentials.dir)


@contextlib.contextmanager
def _naming(config: Config, key: str, value: Path) -> Iterator[None]:
    """Have errors of the block say which key of which file they are about."""
    place = f'{config.path}: {key} = "{value}"'
    try:
        yield
    except StoreError as error:
        raise StoreError(
            f"{place}: {error.what}", where=error.where, advice=error.advice
        ) from error
    except CacheDirectoryError as error:
        raise StoreError(
            f"{place}: the credential folder cannot be shared: {error.problem}",
            where=error.path,
            advice=error.advice,
        ) from error
