"""The last lines of a process that died."""

from __future__ import annotations

import os
import signal

from td_runtime.logs import LineRing


def line(run_id: str | None, text: str) -> bytes:
    return (f'{{"run_id":"{run_id}","text":"{text}"}}\n' if run_id else f'{{"{text}"}}\n').encode()


def test_the_parent_reads_what_a_killed_child_had_kept():
    """The memory outlives the process that wrote to it, however that ends."""
    ring = LineRing()
    pid = os.fork()
    if pid == 0:
        ring.put(line("run_a", "last words"))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)

    assert ring.tail("run_a") == '{"run_id":"run_a","text":"last words"}\n'
    ring.close()


def test_a_runs_lines_and_the_workers_own_from_its_beginning_on():
    """Other runs' lines are theirs, and what was before it began is no concern of it."""
    ring = LineRing()
    for each in (
        line(None, "booted"),
        line("run_a", "1"),
        line("run_b", "2"),
        line(None, "stalled"),
        line("run_a", "3"),
    ):
        ring.put(each)

    tail = (line("run_a", "1") + line(None, "stalled") + line("run_a", "3")).decode()
    assert ring.tail("run_a") == tail
    assert ring.tail("run_a", count=1) == line("run_a", "3").decode()
    assert ring.tail("run_c") is None


def test_old_and_long_lines_make_room():
    """Of many lines the last 20 are told, of a long one the beginning; never more than there is."""
    ring = LineRing()
    for number in range(1000):
        ring.put(line("run_a", f"{number} {'x' * 5000}"))
    told = ring.tail("run_a") or ""

    assert [each.split('"text":"')[1].split()[0] for each in told.splitlines()] == [
        str(number) for number in range(980, 1000)
    ]
    assert len(told) < 20 * 1024
