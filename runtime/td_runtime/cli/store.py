"""``td-runtime store``: copy the run store while it is used, and look whether it is whole."""

from pathlib import Path
from typing import Annotated

import typer

from td_runtime.cli.options import ConfigOption, JsonOption, load, print_json
from td_runtime.data_dir import DataDir
from td_runtime.errors import StoreError

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="The run store: where runs are queued and recorded.")


@app.command()
def backup(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The copy; must not exist yet.")],
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Copy the run store to PATH, while the supervisor runs or not."""
    from td_runtime.store.backup import backup as copy

    target = path.absolute()
    copy(_run_store(config), target)
    size = target.stat().st_size
    if json:
        print_json({"path": str(target), "bytes": size})
    else:
        typer.echo(f"{target}: {size:,} bytes")


@app.command()
def check(
    path: Annotated[
        Path | None,
        typer.Argument(
            metavar="[PATH]", help="A backup; else the run store itself.", show_default=False
        ),
    ] = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Look whether the run store, or a backup of it, is whole; exit code 6 if it is not."""
    from td_runtime.store.check import check as find_problems

    checked = _run_store(config) if path is None else path.absolute()
    if path is not None and not path.exists():
        raise StoreError("there is no such file", where=str(checked))
    problems = find_problems(checked)
    if json:
        print_json({"path": str(checked), "problems": problems})
    if problems:
        raise StoreError(
            "\n".join(["the run store is damaged:", *problems]),
            where=str(checked),
            advice="stop td-runtime, keep the file, and put the newest good backup in its place",
        )
    if not json:
        typer.echo(f"{checked}: ok")


def _run_store(config: Path | None) -> Path:
    return DataDir(load(config).runtime.data_dir).run_store
