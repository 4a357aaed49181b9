"""Looks at task code without letting it into the supervisor: in a forked child (design §3)."""

import os
import select
import sys
from collections.abc import Iterable

import msgspec

from td_runtime.config import Config, TaskConfig
from td_runtime.errors import TaskImportError
from td_runtime.fork import Child, fork_child
from td_runtime.retries import retry_policy
from td_worker.errors import TaskLoadError
from td_worker.task import TaskFacts, TaskSpec, load_task

__all__ = ["inspect_tasks", "task_specs"]


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
    """
    report = _ask_child(config, keep)
    if report.problems:
        raise TaskImportError(
            "\n".join(report.problems),
            where=str(config.path),
            advice=f"Entrypoints are `module:function`, looked for in {config.folder}.",
        )

    return report.facts


def _ask_child(config: Config, keep: Iterable[int]) -> _Report:
    # A file and not a pipe: a process that a module starts at import would keep a pipe open.
    with os.fdopen(os.memfd_create("td-inspection"), "rb") as file:
        fd = file.fileno()
        child = fork_child(lambda: _inspect(config, fd), name="td-inspector", keep=[fd, *keep])
        status = _wait(child)
        answer = os.pread(fd, os.fstat(fd).st_size, 0)
    if status != 0 or not answer:
        raise TaskImportError(
            f"importing the tasks ended the process that looked at them (status {status})",
            where=str(config.path),
            advice="Import the modules by hand: something in them exits or crashes.",
        )

    return msgspec.json.decode(answer, type=_Report)


def _wait(child: Child) -> int:
    """Return the child's status once it has ended; what modules had started ends with it."""
    poller = select.poll()
    poller.register(child.pidfd, select.POLLIN)
    try:
        poller.poll()
    finally:
        child.kill_group()
        status = child.reap()

    return status


def _inspect(config: Config, writer: int) -> int:
    """The child's part: load each task, send what was found."""
    # What modules print at import must not end up in a command's output on stdout.
    os.dup2(2, 1)
    for name in config.secret_variables:
        os.environ.pop(name, None)
    sys.path.append(str(config.folder))
    report = _Report([], [])
    for index, spec in enumerate(task_specs(config)):
        try:
            report.facts.append(load_task(spec).facts())
        except TaskLoadError as error:
            key = f"tasks[{index}].entrypoint"
            report.problems.append(
                f"{config.path}: {key} = {spec.entrypoint!r} (task {spec.id!r}): {error.reason}"
            )
    with os.fdopen(writer, "wb") as file:
        file.write(msgspec.json.encode(report))

    return 0
