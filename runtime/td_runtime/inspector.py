"""Looks at task code without letting it into the supervisor: in a forked child (design §3)."""

import os
import sys

import msgspec

from td_runtime.config import Config, TaskConfig
from td_runtime.errors import TaskImportError
from td_runtime.fork import fork_child
from td_worker.errors import TaskLoadError
from td_worker.task import TaskFacts, TaskSpec, load_task

__all__ = ["inspect_tasks", "task_specs"]


class _Report(msgspec.Struct, frozen=True):
    """What the child found out."""

    facts: list[TaskFacts]
    problems: list[str]


def task_specs(config: Config) -> tuple[TaskSpec, ...]:
    """Return what a worker has to know of the tasks in *config*."""
    return tuple(_spec(task) for task in config.tasks)


def _spec(task: TaskConfig) -> TaskSpec:
    return TaskSpec(
        id=task.id,
        entrypoint=task.entrypoint,
        max_duration=task.max_duration,
        fail_on_stream_loss=task.fail_on_stream_loss,
    )


def inspect_tasks(config: Config) -> list[TaskFacts]:
    """Import every entrypoint of *config* in a forked child and return what they are.

    Must be called in a process with one thread.

    Raises:
        TaskImportError: An entrypoint cannot be imported or called; names file, key and value of
            each one, and the nearest valid name.
    """
    report = _ask_child(config)
    if report.problems:
        raise TaskImportError(
            "\n".join(report.problems),
            where=str(config.path),
            advice=f"Entrypoints are `module:function`, looked for in {config.folder}.",
        )

    return report.facts


def _ask_child(config: Config) -> _Report:
    reader, writer = os.pipe()
    child = fork_child(lambda: _inspect(config, writer), name="td-inspector", keep=[writer])
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    child.join()
    if child.exitcode != 0 or not answer:
        raise TaskImportError(
            f"importing the tasks ended the process that looked at them (status {child.exitcode})",
            where=str(config.path),
            advice="Import the modules by hand: something in them exits or crashes.",
        )

    return msgspec.json.decode(answer, type=_Report)


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
    with os.fdopen(writer, "wb") as pipe:
        pipe.write(msgspec.json.encode(report))

    return 0
