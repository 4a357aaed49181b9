"""``td-runtime runs``: look at runs, and do something about them."""

import typer

from td_runtime.cli.runs import cancel, listing, replay, show, wait

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Runs: what was asked for, and what became of it.")

app.command("list")(listing.list_)
app.command("show")(show.show)
app.command("cancel")(cancel.cancel)
app.command("replay")(replay.replay)
app.command("wait")(wait.wait)
