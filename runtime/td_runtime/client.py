"""Trigger runs from a program that is none of td-runtime's own: ``from td_runtime import Client``.

It talks to the supervisor of the same host over the control socket. :mod:`td_runtime.async_client`
is the twin for programs with an event loop.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from td_runtime import client_calls as calls
from td_runtime.client_calls import ListOptions, RunHandle
from td_runtime.control import (
    Accepted,
    AddTags,
    CanceledRuns,
    CancelRuns,
    ControlClient,
    ControlRefusedError,
    Done,
    GetRun,
    RunDetails,
    RunItem,
    RunsPage,
    RunView,
    WaitForRun,
)

if TYPE_CHECKING:
    from datetime import datetime
    from typing import Unpack

    from td_worker.tasks import RunResult
    from td_worker.trigger_options import Duration, TriggerOptions

__all__ = ["Client"]

ANSWER_S: Final = 30.0
_MOST_IDLE: Final = 64
"""Connections that are kept for the next requests."""

AnswerT = TypeVar("AnswerT", bound=msgspec.Struct)


class Client:
    """
    Triggers runs, and looks at them, from any thread; for a web app, a script or a notebook.

    Make one a process, or one before the processes are forked: each opens connections of its own
    when it first asks. A supervisor that was restarted is found again by the next call.

    ```python
    with Client(config) as client:
        handle = client.trigger("hello", {"name": "Ada"}, tags=["user_17"])
        print(client.wait(handle.id).unwrap())
    ```

    Args:
        config: The config file; without one ``./td-runtime.toml``, then ``$TD_RUNTIME_CONFIG``.
        data_dir: The supervisor's data folder, in place of a config file.
        name: Who is calling, in a word or two: it is recorded with what is triggered and canceled.

    Raises:
        ConfigError: There is no config file, or it is wrong.

    Every call raises:
        NotRunningError: No supervisor answers. It may have done what it was asked, and died: give
            an idempotency key to be able to ask again.
        ControlRefusedError: The supervisor says no, and why; nothing has changed. ``code`` is
            ``queue_full``, ``unknown_task`` and so on.
        TimeoutError: No answer came in time.
        TypeError: What is asked for has a value of a wrong type.
    """

    def __init__(
        self,
        config: str | os.PathLike[str] | None = None,
        *,
        data_dir: str | os.PathLike[str] | None = None,
        name: str = "client",
    ) -> None:
        self._data_dir = calls.find_data_dir(config, data_dir)
        self._name = name
        self._pid = os.getpid()
        # Taken from and given back to by single operations, which are atomic: a lock might be held
        # by another thread at the moment of a fork, and would then be held in the child for ever.
        self._idle: list[ControlClient] = []

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up. A call that comes later connects again."""
        while (line := self._take()) is not None:
            line.close()

    def trigger(
        self, task: str, payload: Any = None, **options: Unpack[TriggerOptions]
    ) -> RunHandle:
        """
        Ask for a run, and return once it is durably accepted.

        ```python
        handle = client.trigger("hello", {"name": "Ada"}, delay=60, idempotency_key="hello-ada")
        ```

        Args:
            task: Id of a task in the config file.
            payload: Anything JSON can say; dataclasses, msgspec structs and pydantic models too.
            **options: See :class:`td_worker.trigger_options.TriggerOptions`.
        """
        from td_worker.trigger_options import make_item

        items = [make_item(task, payload, options)]

        return calls.handles(items, self._ask(calls.trigger_request(items), Accepted))[0]

    def batch_trigger(
        self, task: str, payloads: Iterable[Any], **options: Unpack[TriggerOptions]
    ) -> list[RunHandle]:
        """
        Ask for one run a payload; all are accepted, or none. By far the fastest way to many runs.

        ```python
        handles = client.batch_trigger("hello", [{"name": "Ada"}, {"name": "Grace"}])
        ```

        Args:
            task: Id of a task in the config file.
            payloads: At most ``limits.batch`` of them.
            **options: For each of the runs. An idempotency key gets the payload's place added.
        """
        from td_worker.trigger_options import make_items

        items = make_items(task, payloads, options)

        return calls.handles(items, self._ask(calls.trigger_request(items), Accepted))

    def retrieve(self, run_id: str) -> RunDetails:
        """
        Return everything that is known of a run.

        ```python
        run = client.retrieve(run_id)
        print(run.status, run.attempt, run.output)
        ```
        """
        return self._ask(GetRun(run_id=run_id), RunDetails)

    def list(self, **options: Unpack[ListOptions]) -> list[RunItem]:
        """
        Return a page of runs, newest first.

        ```python
        page = client.list(tag="user_17", status=["FAILED", "CRASHED"], limit=20)
        older = client.list(tag="user_17", before=page[-1].id) if page else []
        ```

        Args:
            **options: See :class:`td_runtime.client_calls.ListOptions`.
        """
        return self._ask(calls.list_request(options), RunsPage).runs

    def cancel(self, *run_ids: str, descendants: bool = False) -> CanceledRuns:
        """
        Cancel runs; the answer says what became of each.

        ```python
        done = client.cancel(run_id)
        print(done.canceled, done.requested, done.finished)
        ```

        Args:
            *run_ids: The runs.
            descendants: Whether everything below them is canceled, too.
        """
        return self._ask(CancelRuns(run_ids=[*run_ids], descendants=descendants), CanceledRuns)

    def reschedule(self, run_id: str, delay: Duration | datetime) -> None:
        """
        Let a run that is DELAYED start at another time; one in another status is refused.

        ```python
        handle = client.trigger("hello", delay=3600)
        client.reschedule(handle.id, delay=60)
        ```

        Args:
            run_id: The run.
            delay: Seconds from now, or a moment. Its ``ttl`` counts from then.
        """
        self._ask(calls.reschedule_request(run_id, delay), Done)

    def add_tags(self, run_id: str, *tags: str) -> None:
        """
        Give a run further tags, whatever its status; those that it has already stay as they are.

        ```python
        client.add_tags(run_id, "user_17", "reviewed")
        ```
        """
        self._ask(AddTags(run_id=run_id, tags=tags), Done)

    def replay(self, run_id: str, payload: Any = msgspec.UNSET) -> RunHandle:
        """
        Start a run like an earlier one, with the same payload or another one.

        ```python
        again = client.replay(run_id)
        ```
        """
        request = calls.replay_request(run_id, payload)
        (new_id,) = self._ask(request, Accepted).run_ids

        return RunHandle(new_id, self.retrieve(new_id).task)

    def wait(self, run_id: str, *, timeout: float | None = None) -> RunResult:
        """
        Return how a run ended, once it has.

        ```python
        result = client.wait(run_id, timeout=60)
        print(result.output if result.ok else result.error)
        ```

        Args:
            run_id: The run.
            timeout: Seconds to wait; None: for ever.
        """
        return calls.result(self._ask(WaitForRun(run_id=run_id), RunView, timeout=timeout))

    def _ask(
        self,
        request: msgspec.Struct,
        kind: type[AnswerT],
        *,
        timeout: float | None = ANSWER_S,
    ) -> AnswerT:
        calls.check(request)
        with self._line() as line:
            return line.ask(request, kind, timeout=timeout)

    @contextlib.contextmanager
    def _line(self) -> Iterator[ControlClient]:
        """Lend a connection; one that a request did not get its answer on is not used again."""
        line = self._take() or ControlClient(self._data_dir, name=self._name)
        try:
            yield line
        except ControlRefusedError:
            self._give_back(line)
            raise
        except BaseException:
            line.close()
            raise
        self._give_back(line)

    def _take(self) -> ControlClient | None:
        if self._pid != os.getpid():
            self._forget_parent()
        while True:
            try:
                line = self._idle.pop()
            except IndexError:
                return None
            if not line.is_gone:
                return line
            line.close()

    def _give_back(self, line: ControlClient) -> None:
        if len(self._idle) < _MOST_IDLE:
            self._idle.append(line)
        else:
            line.close()

    def _forget_parent(self) -> None:
        """Close this process's copies of connections that are its parent's."""
        inherited, self._idle = self._idle, []
        self._pid = os.getpid()
        for line in inherited:
            line.close()
