"""``td-runtime runs list``."""

import difflib
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import typer

from td_runtime.cli.options import ConfigOption, JsonOption, load, print_json, read_moment
from td_runtime.cli.run_ids import complete_id
from td_runtime.errors import UsageError

if TYPE_CHECKING:
    from td_runtime.store import RunReader, RunSummary, Status

__all__ = ["list_"]

_HEADER: Final = ("run", "task", "status", "attempt", "created", "took", "tags")
_LARGEST_PAGE: Final = 10_000


def list_(
    config: ConfigOption = None,
    status: Annotated[
        list[str] | None,
        typer.Option(metavar="STATUS", help="Only such runs; may be given several times."),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK", help="Only runs of it; may be given several times."),
    ] = None,
    tag: Annotated[str | None, typer.Option(metavar="TAG", help="Only runs with it.")] = None,
    queue: Annotated[str | None, typer.Option(metavar="QUEUE", help="Only runs in it.")] = None,
    parent: Annotated[
        str | None, typer.Option(metavar="RUN", help="Only runs that this one triggered.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(metavar="WHEN", help="Only runs accepted since: 2h ago, or a time."),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(metavar="WHEN", help="Only runs accepted before: 2h ago, or a time."),
    ] = None,
    limit: Annotated[
        int, typer.Option(min=1, max=_LARGEST_PAGE, metavar="COUNT", help="Most runs on a page.")
    ] = 50,
    before: Annotated[
        str | None, typer.Option(metavar="RUN", help="The next page: only runs older than it.")
    ] = None,
    after: Annotated[
        str | None, typer.Option(metavar="RUN", help="The page before: only newer runs.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show runs, newest first; needs no supervisor."""
    if before is not None and after is not None:
        raise UsageError("--before and --after are different pages", advice="Give one of them.")
    from td_runtime.cli.reading import read_store
    from td_runtime.store import RunQuery

    loaded = load(config)
    query = RunQuery(
        statuses=frozenset(map(_status, status or ())),
        tasks=frozenset(task or ()),
        tag=tag,
        queue=queue,
        since=None if since is None else read_moment(since, "--since", ago=True),
        until=None if until is None else read_moment(until, "--until", ago=True),
        # One more than shown tells whether there is another page.
        limit=limit + 1,
    )

    async def read(reader: "RunReader") -> "list[RunSummary]":
        named = {"parent_id": parent, "before": before, "after": after}
        ids = {
            name: await complete_id(reader, loaded, text)
            for name, text in named.items()
            if text is not None
        }
        return await reader.find(msgspec.structs.replace(query, **ids))

    found = read_store(loaded, read)
    _print(*_page(found, limit, upwards=after is not None), json=json)


def _page(
    found: "list[RunSummary]", limit: int, *, upwards: bool
) -> "tuple[list[RunSummary], str | None]":
    """Return the runs of the page, and the id that names the next one if there may be more."""
    is_more = len(found) > limit
    if upwards:
        # These are next to the run that was given, so older ones are there for certain.
        runs = found[1:] if is_more else found
        return runs, runs[-1].id if runs else None
    runs = found[:limit]

    return runs, runs[-1].id if is_more else None


def _status(text: str) -> "Status":
    from td_runtime.store import Status

    try:
        return Status(text.upper())
    except ValueError as error:
        close = difflib.get_close_matches(text.upper(), Status, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UsageError(
            f"{text!r} is no status{hint}",
            where="--status",
            advice=f"They are {', '.join(Status)}.",
        ) from error


def _print(runs: "list[RunSummary]", following: str | None, *, json: bool) -> None:
    from td_runtime.cli.runs.documents import summary_document

    if json:
        print_json({"runs": [summary_document(run) for run in runs], "next": following})
        return
    if not runs:
        typer.echo("no runs", err=True)
        return
    _print_table(runs)
    if following is not None:
        typer.echo(f"older ones: --before {following}", err=True)


def _print_table(runs: "list[RunSummary]") -> None:
    from td_runtime.cli.runs.documents import progress_of
    from td_runtime.cli.tables import print_table, short_moment

    rows = [
        (
            run.id,
            run.task,
            str(run.status),
            str(run.attempt),
            short_moment(run.created_at),
            progress_of(run),
            " ".join(run.tags),
        )
        for run in runs
    ]
    print_table(_HEADER, rows)
