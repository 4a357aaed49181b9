"""Looks at task code without letting it into the supervisor: in a forked child (design §3)."""

import asyncio
import os
import select
import sys
from collections.abc import Iterable
from typing import Final, Self

import msgspec

from td_runtime.config import Config, TaskConfig
from td_runtime.errors import TaskImportError, naming_refusal
from td_runtime.fork import Child, Guard, fork_child
from td_runtime.retries import retry_policy
from td_worker.errors import TaskLoadError
from td_worker.task import TaskFacts, TaskSpec, load_task

__all__ = ["inspect_tasks", "inspect_tasks_on_loop", "task_specs"]

_PATIENCE: Final = 120.0
"""Seconds that the import of all tasks may take while everything else runs."""


class _Report(msgspec.Struct, frozen=True):
    """What the child found out."""

    facts: list[TaskFacts]
    problems: list[str]


def task_specs(config: Config) -> tuple[TaskSpec, ...]:
    """Return what a worker has to know of the tasks in *config*."""
    return tuple(_spec(task, config) for task in config.tasks)


def _spec(task: TaskConfig, config: Config) -> TaskSpec:
    return TaskSpec(
        id=task.id,
        entrypoint=task.entrypoint,
        max_duration=task.max_duration,
        fail_on_stream_loss=task.fail_on_stream_loss,
        is_loop=task.replicas > 0,
        retry=retry_policy(task),
        shared_hooks=config.runtime.hooks,
        hooks=task.hooks,
    )


def inspect_tasks(config: Config, *, keep: Iterable[int] = ()) -> list[TaskFacts]:
    """Import every entrypoint of *config* in a forked child and return what they are.

    Must be called in a process with one thread.

    Args:
        config: The configuration.
        keep: Descriptors the child needs: where this process logs to. With that closed, lines
            logged at import would go to whatever gets its number next.

    Raises:
        TaskImportError: An entrypoint cannot be imported or called; names file, key and value of
            each one, and the nearest valid name.
        TdRuntimeError: The system has no process, memory or descriptor for the child.
    """
    with _Inspection(config, keep) as inspection:
        poller = select.poll()
        poller.register(inspection.child.pidfd, select.POLLIN)
        poller.poll()

    return inspection.facts()


async def inspect_tasks_on_loop(
    config: Config, *, keep: Iterable[int], guard: Guard
) -> list[TaskFacts]:
    """Do what `inspect_tasks` does, while the loop turns.

    Args:
        config: The configuration.
        keep: Descriptors the child needs.
        guard: Told which process must not outlive this one.

    Raises:
        TaskImportError: As `inspect_tasks`; also when the imports do not come to an end.
    """
    try:
        with _Inspection(config, keep, guard) as inspection:
            await asyncio.wait_for(_ended(inspection.child), _PATIENCE)
    except TimeoutError as error:
        raise TaskImportError(
            f"importing the tasks took longer than {_PATIENCE:g} s",
            where=str(config.path),
            advice="Import the modules by hand: something in them waits.",
        ) from error

    return inspection.facts()


async def _ended(child: Child) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(child.pidfd, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(child.pidfd)


class _Inspection:
    """A child that looks at the tasks; the block ends with it, and with what modules started."""

    def __init__(self, config: Config, keep: Iterable[int], guard: Guard | None = None) -> None:
        self._config = config
        self._guard = guard
        self._keep = tuple(keep)
        self._status = 0
        self._answer = b""
        self.child: Child

    def __enter__(self) -> Self:
        with naming_refusal("the child that imports the tasks"):
            self.child = self._fork()
        if self._guard is not None:
            self._guard.guard(self.child.pid)

        return self

    def _fork(self) -> Child:
        # A file and not a pipe: a process that a module starts at import would keep a pipe open.
        self._file = os.memfd_create("td-inspection")
        try:
            return fork_child(
                lambda: _inspect(self._config, self._file),
                name="td-inspector",
                keep=[self._file, *self._keep],
            )
        except OSError:
            os.close(self._file)
            raise

    def __exit__(self, *_: object) -> None:
        self.child.kill_group()
        self._status = self.child.reap()
        if self._guard is not None:
            self._guard.unguard(self.child.pid)
        self._answer = os.pread(self._file, os.fstat(self._file).st_size, 0)
        os.close(self._file)

    def facts(self) -> list[TaskFacts]:
        """Return what the child found, once it has ended.

        Raises:
            TaskImportError: Something is wrong with the tasks.
        """
        where = str(self._config.path)
        if self._status != 0 or not self._answer:
            raise TaskImportError(
                "importing the tasks ended the process that looked at them "
                f"(status {self._status})",
                where=where,
                advice="Import the modules by hand: something in them exits or crashes.",
            )
        report = msgspec.json.decode(self._answer, type=_Report)
        if report.problems:
            raise TaskImportError(
                "\n".join(report.problems),
                where=where,
                advice=f"Entrypoints are `module:function`, looked for in {self._config.folder}.",
            )

        return report.facts


def _problem(reason: str, places: list[str]) -> str:
    """Say once what is wrong, with a module, say, that many tasks are in."""
    others = len(places) - 1
    more = f" (and so for {others} more task{'s' * (others > 1)})" if others else ""

    return f"{places[0]}: {reason}{more}"


def _inspect(config: Config, writer: int) -> int:
    """The child's part: load each task, send what was found."""
    # What modules print at import must not end up in a command's output on stdout.
    os.dup2(2, 1)
    for name in config.secret_variables:
        os.environ.pop(name, None)
    sys.path.append(str(config.folder))
    facts: list[TaskFacts] = []
    problems: dict[str, list[str]] = {}
    for index, spec in enumerate(task_specs(config)):
        try:
            facts.append(load_task(spec).facts())
        except TaskLoadError as error:
            # Hooks have a key of their own, or are those of all tasks.
            is_hook = error.reason.startswith("hooks: ")
            key = "" if is_hook else f".entrypoint = {spec.entrypoint!r}"
            place = f"{config.path}: tasks[{index}]{key} (task {spec.id!r})"
            problems.setdefault(error.reason, []).append(place)
    report = _Report(facts, [_problem(*each) for each in problems.items()])
    with os.fdopen(writer, "wb") as file:
        file.write(msgspec.json.encode(report))

    return 0
