"""Reading the config anew while everything runs: what SIGHUP does.

What is new is looked at as a whole first: the file, and the tasks in a forked child. Where anything
is wrong with it, nothing changes. What needs a restart keeps its value, and is named.
"""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import structlog

from td_runtime.config import Config, load_config
from td_runtime.errors import TdRuntimeError
from td_runtime.fork import Guard
from td_runtime.inspector import inspect_tasks_on_loop
from td_runtime.service_manager import ServiceManager
from td_worker.task import TaskFacts

__all__ = ["Reloader", "keep_fixed"]

log = structlog.get_logger()

_FIXED: Final = (
    "runtime.data_dir",
    "control_plane.url",
    "control_plane.secret_key",
    "credentials.dir",
    "gateway.listen",
    "gateway.allow_other_interfaces",
    "log.format",
)
"""Keys whose values other processes, or open files, hold on to until the end."""


def keep_fixed(old: Config, new: Config) -> tuple[Config, list[str]]:
    """Return *new* with those of its values that need a restart as they are in *old*.

    Returns:
        The config to go on with, and the keys that differ and were not followed.
    """
    ignored = [key for key in _FIXED if _get(old, key) != _get(new, key)]
    # The variables may have been named by the old config, and their values are still secret.
    kept = dataclasses.replace(new, secret_variables=old.secret_variables | new.secret_variables)
    for key in ignored:
        section, _, name = key.partition(".")
        table = dataclasses.replace(getattr(kept, section), **{name: _get(old, key)})
        kept = dataclasses.replace(kept, **{section: table})

    return kept, ignored


def _get(config: Config, key: str) -> object:
    section, _, name = key.partition(".")

    return getattr(getattr(config, section), name)


class Reloader:
    """Carries out reloads, one at a time. Belongs to the supervisor's loop.

    Args:
        current: Returns the config in force.
        apply: Puts a config into force, whose tasks were looked at; returns when it is.
        keep: Descriptors that the child which looks at the tasks needs.
        guard: Told which process must not outlive this one.
        service: Told when a reload begins and ends.
        status: What it is told at the end, in words.
    """

    def __init__(
        self,
        *,
        current: Callable[[], Config],
        apply: Callable[[Config, list[TaskFacts]], Awaitable[None]],
        keep: Iterable[int],
        guard: Guard,
        service: ServiceManager,
        status: Callable[[], str],
    ) -> None:
        self._current = current
        self._apply = apply
        self._keep = tuple(keep)
        self._guard = guard
        self._service = service
        self._status = status
        self._wanted = asyncio.Event()

    def request(self) -> None:
        """Reload, or once more when the reload under way has ended: its file is read by now."""
        log.info("reload.requested")
        self._wanted.set()

    async def run(self) -> None:
        """Reload whenever that is requested, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            self._service.reloading()
            await self.reload()
            self._service.ready(self._status())

    async def reload(self) -> bool:
        """Read the config and put it into force; say whether it was taken."""
        old = self._current()
        try:
            config, ignored = keep_fixed(old, load_config(old.path))
            facts = await inspect_tasks_on_loop(config, keep=self._keep, guard=self._guard)
        except TdRuntimeError as error:
            log.error(
                "reload.refused",
                error_message=error.what,
                where=error.where,
                advice=error.advice,
            )
            return False
        if ignored:
            log.warning("reload.ignored", keys=ignored, advice="they need a restart")

        return await self._put_into_force(old, config, facts)

    async def _put_into_force(self, old: Config, config: Config, facts: list[TaskFacts]) -> bool:
        before = {task.id for task in old.tasks}
        after = {task.id for task in config.tasks}
        try:
            await self._apply(config, facts)
        except TdRuntimeError as error:
            log.error("reload.failed", error_message=error.what, advice=error.advice)
            return False
        log.info(
            "reload.completed",
            tasks=sorted(after),
            added=sorted(after - before),
            removed=sorted(before - after),
        )

        return True
