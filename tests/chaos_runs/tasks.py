"""The tasks of a campaign: kinds of runs that a runtime must live with."""

from __future__ import annotations

import asyncio
import ctypes
import os
import subprocess
import time
from typing import Any

from td_worker import sync, tasks
from tests.chaos_runs import marks

_GROWTH = 8 * 1024 * 1024
_EVER = 3600.0

_kept: list[bytearray] = []

Payload = dict[str, Any]


def result_of(payload: Payload) -> int:
    """Return what the run of a payload returns if it completes."""
    return 2 * int(payload["n"])


async def quick(payload: Payload) -> int:
    with marks.attempt():
        return result_of(payload)


async def pause(payload: Payload) -> int:
    with marks.attempt():
        await asyncio.sleep(payload["seconds"])
        return result_of(payload)


def pause_in_thread(payload: Payload) -> int:
    with marks.attempt():
        time.sleep(payload["seconds"])
        return result_of(payload)


def crunch(payload: Payload) -> int:
    with marks.attempt():
        until = time.thread_time() + payload["seconds"]
        while time.thread_time() < until:
            sum(range(1000))
        return result_of(payload)


def spawn(payload: Payload) -> int:
    """Wait for one child, and leave another one behind."""
    with marks.attempt():
        subprocess.run(["sleep", str(payload["seconds"])], check=True)
        if payload["leaves"]:
            subprocess.Popen(["sleep", str(_EVER)])
        return result_of(payload)


async def grow(payload: Payload) -> int:
    """Take memory for ever, until the worker is replaced."""
    with marks.attempt():
        _kept.append(bytearray(os.urandom(4096) * (_GROWTH // 4096)))
        return result_of(payload)


async def block(payload: Payload) -> int:
    """Block the loop of the worker, and everybody on it."""
    with marks.attempt():
        time.sleep(payload["seconds"])
        return result_of(payload)


async def fail(payload: Payload) -> int:
    with marks.attempt():
        raise RuntimeError("always")


async def fail_once(payload: Payload) -> int:
    with marks.attempt() as run_id:
        if marks.is_first_time(run_id):
            raise RuntimeError("once")
        return result_of(payload)


async def segfault(payload: Payload) -> int:
    with marks.attempt():
        ctypes.string_at(0)
        return 0


def segfault_once(payload: Payload) -> int:
    with marks.attempt() as run_id:
        if marks.is_first_time(run_id):
            ctypes.string_at(0)
        return result_of(payload)


def leave(payload: Payload) -> int:
    with marks.attempt():
        os._exit(3)


async def obey(payload: Payload) -> int:
    """Go on for ever, and stop when canceled."""
    with marks.attempt():
        await asyncio.sleep(_EVER)
        return 0


async def ignore(payload: Payload) -> int:
    """Go on for ever, whoever cancels."""
    with marks.attempt():
        while True:
            try:
                await asyncio.sleep(_EVER)
            except asyncio.CancelledError:
                continue


def ignore_in_thread(payload: Payload) -> int:
    with marks.attempt():
        time.sleep(_EVER)
        return 0


overrun = obey
"""Has a `max_duration` in the config, as the next one."""
overrun_and_ignore = ignore


async def parent(payload: Payload) -> int:
    """Wait for children one after the other."""
    with marks.attempt():
        for call, (task, child) in enumerate(payload["children"]):
            await tasks.trigger_and_wait(task, {**child, "n": payload["n"], "call": call})
        return result_of(payload)


def parent_in_thread(payload: Payload) -> int:
    """Wait for children at once."""
    with marks.attempt():
        children = [
            {**child, "n": payload["n"], "call": call}
            for call, (_, child) in enumerate(payload["children"])
        ]
        sync.tasks.batch_trigger_and_wait("pause", children)
        return result_of(payload)
