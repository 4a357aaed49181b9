"""``td-runtime streams``."""

import contextlib
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Final

import typer

from td_runtime.cli.options import (
    ConfigOption,
    control_plane_access,
    load,
    log_to_stderr,
    print_json,
)
from td_runtime.cli.run_ids import complete_ids
from td_runtime.cli.waiting import wait_for_run
from td_runtime.config import Config
from td_runtime.control import ControlClient, NotRunningError
from td_runtime.data_dir import DataDir
from td_runtime.errors import ControlPlaneUnavailableError, TdRuntimeError, UsageError

if TYPE_CHECKING:
    from td_worker.control_plane import ControlPlane, SseBody

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Realtime streams of runs.")

_SILENCE: Final = 1
"""Seconds without a record after which a stream that nobody writes to counts as read."""
_LONG_SILENCE: Final = 60
"""The same while its run may write; then the server is asked again."""
_PATIENCE: Final = 10.0
"""Seconds for a gateway that is being restarted to answer again."""


@app.command()
def read(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Id of the run.")],
    key: Annotated[str, typer.Argument(metavar="[KEY]", help="Which of its streams.")] = "default",
    config: ConfigOption = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the run has ended.")
    ] = False,
) -> None:
    """Print a stream of RUN, one JSON chunk a line."""
    import asyncio

    loaded = load(config)
    log_to_stderr()
    asyncio.run(_print_stream(loaded, _complete(loaded, run), key, follow))


def _complete(config: Config, text: str) -> str:
    """Return the id of the run that *text* begins; itself where the run store knows none.

    Streams may be those of a run of Trigger.dev.
    """
    try:
        return complete_ids(config, [text])[0]
    except UsageError:
        raise
    except TdRuntimeError:
        return text


async def _print_stream(config: Config, run_id: str, key: str, follow: bool) -> None:
    from td_worker.control_plane import ControlPlane
    from td_worker.errors import ControlPlaneError

    url, secret = control_plane_access(config)
    async with ControlPlane(url, secret.reveal()) as control_plane:
        stream = _Stream(control_plane, run_id, key)
        try:
            if follow:
                await _print_until_ended(stream, config, run_id)
            await stream.print_rest(_SILENCE)
        except ControlPlaneError as error:
            raise ControlPlaneUnavailableError(
                str(error),
                where=f"{url}, run {run_id}, stream {key!r}",
                advice="`td-runtime status` shows whether the runtime is up; "
                "`td-runtime platform stats` shows which streams there are.",
            ) from error
    if not stream.printed:
        typer.echo(f"td-runtime: stream {key!r} of {run_id} has no records", err=True)
        if config.control_plane.is_embedded:
            typer.echo(
                "  next: `td-runtime platform stats` shows which streams there are.", err=True
            )


async def _print_until_ended(stream: "_Stream", config: Config, run_id: str) -> None:
    """Print what is written until the run has an outcome.

    Returns at once when there is nobody who could tell.

    Raises:
        NotRunningError: The supervisor stopped before.
    """
    import asyncio

    try:
        control = ControlClient(DataDir(config.runtime.data_dir))
    except NotRunningError:
        return
    with control:
        ended = asyncio.ensure_future(wait_for_run(control, run_id))
        printing = asyncio.ensure_future(stream.print_for_ever())
        try:
            await asyncio.wait({ended, printing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
            printing.cancel()
            outcome, failure = await asyncio.gather(ended, printing, return_exceptions=True)
    if isinstance(outcome, NotRunningError):
        raise NotRunningError(
            "the supervisor stopped before the run had ended",
            where=run_id,
            advice="Once it is started again the run goes on, and can be read from its beginning.",
        )
    if isinstance(failure, Exception):
        raise failure


class _Stream:
    """One stream of one run, printed from its beginning, each chunk once."""

    def __init__(self, control_plane: "ControlPlane", run_id: str, key: str) -> None:
        from td_worker.streams.reader import Subscription

        self._control_plane = control_plane
        self._run_id = run_id
        self._key = key
        self._subscription = Subscription(self._connect)
        self._silence = _SILENCE
        self._answered_at = float("-inf")
        self.printed = 0

    async def print_for_ever(self) -> None:
        """Print until cancelled, or refused."""
        while True:
            await self.print_rest(_LONG_SILENCE)

    async def print_rest(self, silence: int) -> None:
        """Print until nothing has come for *silence* seconds."""
        self._silence = silence
        async for parts in self._subscription.batches():
            for part in parts:
                if part.has_chunk:
                    print_json(part.chunk)
                    self.printed += 1

    @contextlib.asynccontextmanager
    async def _connect(self, cursor: str | None) -> "AsyncIterator[SseBody]":
        """Connect once; give up if nobody has answered for too long, or ever."""
        from td_worker.errors import ControlPlaneError, ControlPlaneUnreachableError

        connection = self._control_plane.open_run_stream(
            self._run_id, self._key, last_event_id=cursor, timeout_s=self._silence
        )
        is_open = False
        try:
            async with connection as body:
                is_open = True
                yield body
        except ControlPlaneError as error:
            if not is_open and time.monotonic() - self._answered_at > _PATIENCE:
                raise ControlPlaneUnreachableError(str(error)) from error
            raise
        finally:
            if is_open:
                self._answered_at = time.monotonic()
