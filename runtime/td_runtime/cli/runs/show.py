"""``td-runtime runs show``."""

from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import typer

from td_runtime.cli.options import ConfigOption, JsonOption, load, print_json, write_text
from td_runtime.cli.run_ids import complete_id
from td_runtime.errors import TdRuntimeError, UsageError

if TYPE_CHECKING:
    from td_runtime.store import Run, RunReader, RunSummary

__all__ = ["RunArgument", "show"]

_PAGE: Final = 500
"""Children of a run that are read at once."""

RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="Its id, or the first characters of it.")
]


def show(
    run: RunArgument,
    config: ConfigOption = None,
    payload: Annotated[
        bool, typer.Option("--payload", help="Print the payload as JSON, nothing else.")
    ] = False,
    output: Annotated[
        bool, typer.Option("--output", help="Print the output as JSON, nothing else.")
    ] = False,
    tree: Annotated[bool, typer.Option("--tree", help="Show the run and all below it.")] = False,
    json: JsonOption = False,
) -> None:
    """Show a run and what became of it; needs no supervisor."""
    if payload + output + tree > 1:
        raise UsageError("--payload, --output and --tree exclude each other")
    from td_runtime.cli.reading import read_store
    from td_runtime.cli.runs.documents import full_document

    loaded = load(config)

    async def read_run(reader: "RunReader") -> "Run":
        found = await reader.get(await complete_id(reader, loaded, run))
        if found is None:
            raise TdRuntimeError(f"the run {run!r} was deleted just now")
        return found

    async def read_tree(reader: "RunReader") -> list["_Branch"]:
        return await _tree(reader, await complete_id(reader, loaded, run))

    if tree:
        _print_tree(read_store(loaded, read_tree), json)
        return
    found = read_store(loaded, read_run)
    if payload:
        write_text(found.payload)
    elif output:
        write_text(_output_of(found))
    elif json:
        print_json(full_document(found))
    else:
        _print_facts(found)


def _output_of(run: "Run") -> bytes:
    if run.output is None:
        raise TdRuntimeError(
            f"the run has no output: it is {run.status}",
            where=run.id,
            advice=f"`td-runtime runs show {run.id}` shows what is known of it.",
        )

    return run.output


def _print_facts(run: "Run") -> None:
    from td_runtime.cli.runs.documents import facts_of

    for name, value in facts_of(run):
        typer.echo(f"{name:<16} {value}")
    if run.error is not None:
        typer.echo(f"{'error':<16} {run.error.type}: {run.error.message}")
        if run.error.traceback:
            typer.echo(f"\n{run.error.traceback.rstrip()}")
    if run.log_tail:
        typer.echo(f"\nlast lines of its log:\n{run.log_tail.rstrip()}")


class _Branch:
    """A run and how deep it is below the one that was asked for."""

    __slots__ = ("depth", "run")

    def __init__(self, run: "RunSummary", depth: int) -> None:
        self.run = run
        self.depth = depth


async def _tree(reader: "RunReader", run_id: str) -> list[_Branch]:
    """Read a run and everything below it, each before its children, without what may be large."""
    top = await reader.get(run_id)
    if top is None:
        return []
    branches = []
    waiting = [_Branch(top, 0)]
    while waiting:
        branch = waiting.pop()
        branches.append(branch)
        # Newest first, so that the oldest is taken next.
        children = await _children(reader, branch.run.id)
        waiting += [_Branch(run, branch.depth + 1) for run in children]

    return branches


async def _children(reader: "RunReader", run_id: str) -> "list[RunSummary]":
    """Return all runs that a run has triggered, newest first."""
    from td_runtime.store import RunQuery

    query = RunQuery(parent_id=run_id, limit=_PAGE)
    found: list[RunSummary] = []
    while True:
        page = await reader.find(query)
        found += page
        if len(page) < _PAGE:
            return found
        query = msgspec.structs.replace(query, before=page[-1].id)


def _print_tree(branches: list[_Branch], json: bool) -> None:
    from td_runtime.cli.runs.documents import progress_of, summary_document

    if json:
        print_json(
            {"runs": [{**summary_document(each.run), "depth": each.depth} for each in branches]}
        )
        return
    for branch in branches:
        run = branch.run
        facts = (f"{'  ' * branch.depth}{run.id}", run.task, str(run.status), progress_of(run))
        typer.echo("  ".join(facts).rstrip())
