"""``td-runtime credentials``: the credentials that all processes of the host share."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from td_runtime.cli.options import ConfigOption, JsonOption, control_plane_access, load, print_json
from td_runtime.config import Config
from td_runtime.errors import StoreError, TdRuntimeError
from td_sharedcache import CacheDirectoryError, CacheError, CredentialInfo, Slot

if TYPE_CHECKING:
    from td_sharedcache import CredentialCache

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Credentials that the processes of this host share.")

_SEEN_WITHIN = 10
"""Seconds after which every process has looked into the shared file again (C8)."""
_USED_NOW = 120.0
_HEADER = ("slot", "id", "age", "expires in", "refresh in", "minted by pid", "used")


@app.command("list")
def list_(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Show the credentials of this control plane and key; never their tokens."""
    with _opened(load(config)) as cache:
        found = sorted(cache.list_blocking(), key=lambda info: info.slot)
    rows = [_row(info, time.time()) for info in found]
    if json:
        print_json({"credentials": rows})
    else:
        _print_table(rows)


@app.command()
def evict(
    slot: Annotated[str, typer.Argument(help="As `list` shows it: run/RUN/KEY.")],
    config: ConfigOption = None,
) -> None:
    """Take the credential of SLOT from all processes; the next write gets a new one."""
    with _opened(load(config)) as cache:
        credential = next((info for info in cache.list_blocking() if info.slot == slot), None)
        if credential is None:
            raise TdRuntimeError(
                f"{slot} has no credential", advice="See `td-runtime credentials list`."
            )
        if not cache.evict_blocking(Slot(slot), credential.id, reason="evicted by hand"):
            raise TdRuntimeError(f"{slot} got another credential just now, which was left alone")
    typer.echo(
        f"evicted {slot} ({credential.id}). Processes that use it now find out within "
        f"{_SEEN_WITHIN} s, at their next look into the shared file; new ones at once."
    )


@app.command()
def clear(config: ConfigOption = None) -> None:
    """Take all credentials of this control plane and key from all processes."""
    with _opened(load(config)) as cache:
        count = len(cache.list_blocking())
        cache.reset_blocking()
    typer.echo(
        f"dropped {count} credentials. Processes that use one now find out within "
        f"{_SEEN_WITHIN} s, at their next look into the shared file; new ones at once."
    )


@contextmanager
def _opened(config: Config) -> Iterator["CredentialCache"]:
    """Open the cache that the workers of this config share, beside them.

    Raises:
        StoreError: The folder cannot be used.
    """
    from td_sharedcache import CredentialCache

    url, secret = control_plane_access(config)
    folder = config.credentials.dir
    try:
        cache = CredentialCache(
            folder,
            origin=url,
            api_key=secret.reveal(),
            minter=_NoMinter(),
            max_age=config.credentials.max_age,
        )
        try:
            yield cache
        finally:
            cache.close()
    except CacheDirectoryError as error:
        raise StoreError(
            f'{config.path}: credentials.dir = "{folder}" cannot be shared: {error.problem}',
            where=error.path,
            advice=error.advice,
        ) from error
    except CacheError as error:
        raise StoreError(
            str(error), where=str(folder), advice="Check [credentials] dir in the config file."
        ) from error


class _NoMinter:
    def mint(self, slot: Slot) -> NoReturn:
        """Refuse: a command that only looks must not ask the control plane for anything."""
        raise AssertionError(f"`td-runtime credentials` never mints, but was to mint {slot}")


def _row(info: CredentialInfo, now: float) -> dict[str, Any]:
    return {
        "slot": str(info.slot),
        "id": info.id,
        "age": round(now - info.minted_at, 1),
        "expires_in": round(info.expires_at - now, 1),
        "refresh_in": round(info.refresh_at - now, 1),
        "minted_by": info.minted_by,
        "used_ago": round(max(0.0, now - info.used_at), 1),
    }


def _print_table(rows: Sequence[dict[str, Any]]) -> None:
    # No table that fits itself to the screen: it would cut the slot that `evict` wants whole.
    lines = [_HEADER, *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        typer.echo("  ".join(cells).rstrip())


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["slot"],
        row["id"],
        _duration(row["age"]),
        _duration(row["expires_in"]),
        _duration(row["refresh_in"]),
        str(row["minted_by"] or "-"),
        # Written down once a minute, so a figure below that would say nothing.
        "now" if row["used_ago"] < _USED_NOW else f"{_duration(row['used_ago'])} ago",
    )


def _duration(seconds: float) -> str:
    if seconds <= 0:
        return "due"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} m"

    return f"{minutes} m {rest:02} s" if minutes else f"{rest} s"
