"""What is done to a contender; prints what came of it as JSON.

Run by `arena`, in the contender's environment:
`python -m peers.experiments EXPERIMENT CONTENDER OPTIONS`.
"""

from __future__ import annotations

import json
import random
import secrets
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

from peers.contenders import CONTENDERS, AsyncContender, Contender, Place
from peers.control_plane import WARM_UP, Address, ControlPlane
from peers.processes import Child, Gate, first_to_report, reports, stopwatch

_SLICES, _SLICE = 151, 0.001
"""How many times hits are timed, and for how many seconds: short enough that most of them are not
interrupted by whatever else the machine does."""
_SETTLING = 0.3
"""Seconds after which whoever waits for a lock polls it as seldom as it ever will."""
_BACKOFF_BASE, _BACKOFF_CAP = 0.25, 30.0


class Experiment:
    """One contender in a new folder, and a name that nobody has used before."""

    def __init__(self, contender: type[Contender], folder: Path, redis: str) -> None:
        self._contender = contender
        self._folder = folder
        self._redis = redis
        self._name = f"run_{secrets.token_hex(12)}"
        # Before any fork, so that the children do not spend the time on imports.
        for module in contender.modules:
            import_module(module)

    def hit(self) -> dict[str, Any]:
        """Time hits, one process alone."""
        with ControlPlane(delay=0.0) as control_plane:
            contender, key = self._open(control_plane.address)
            contender.get(key)
            if isinstance(contender, AsyncContender):
                timing = _time_awaits(contender.get_async, key)
                return {"us": contender.loop.run_until_complete(timing)}

            return {"us": _time_calls(contender.get, key)}

    def stampede(self, *, processes: int, delay: float, is_open: bool) -> dict[str, Any]:
        """Have many processes ask for a credential that nobody has, at the same moment.

        Args:
            processes: How many.
            delay: What the PUT takes.
            is_open: Whether they have used the cache before, for another credential. If not,
                opening it is part of what is timed.
        """
        with ControlPlane(delay=delay) as control_plane:
            self._contender.lay_out(self._place(control_plane.address))
            gate = Gate()

            def cold() -> tuple[float, str]:
                gate.wait()
                return stopwatch(lambda: self._get(control_plane.address))

            def warm() -> tuple[float, str]:
                contender, key = self._open_warm(control_plane.address)
                gate.wait()
                return stopwatch(lambda: contender.get(key))

            children = [Child(warm if is_open else cold) for _ in range(processes)]
            gate.wait_for(children)
            gate.open()
            seen = reports(children)

            return {
                "puts": len(control_plane.puts()),
                "tokens": len({token for _, token in seen}),
                "beyond": max(seconds for seconds, _ in seen) - delay,
            }

    def kill(self, *, waiters: int, delay: float, cut: float) -> dict[str, Any]:
        """Kill the process whose PUT is under way, while others wait for it."""
        with ControlPlane(delay=delay, hangs_first=True) as control_plane:
            self._contender.lay_out(self._place(control_plane.address))
            gate = Gate()

            def work() -> float:
                contender, key = self._open_warm(control_plane.address)
                gate.wait()
                contender.get(key)
                return time.monotonic()

            children = [Child(work) for _ in range(waiters)]
            gate.wait_for(children)
            # Now, since dogpile's file lock is one for all credentials: nobody opens it any more.
            minter = Child(lambda: self._get(control_plane.address))
            control_plane.wait_for_put(seconds=30)
            gate.open()
            time.sleep(_SETTLING)
            killed_at = time.monotonic()
            minter.kill()
            return self._recovery(children, control_plane, killed_at, cut)

    def outage(self, *, processes: int, delay: float, down_for: float) -> dict[str, Any]:
        """Have many processes ask, and ask again, while the control plane answers 503."""
        with ControlPlane(delay=delay, down_for=down_for) as control_plane:
            self._contender.lay_out(self._place(control_plane.address))
            gate = Gate()

            def work() -> float:
                contender, key = self._open_warm(control_plane.address)
                gate.wait()
                _insist(contender, key)
                return time.monotonic()

            children = [Child(work) for _ in range(processes)]
            gate.wait_for(children)
            gate.open()
            back_at = control_plane.wait_for_put(seconds=30).at + down_for
            recovered_at = reports(children)
            puts = control_plane.puts()

            return {
                "puts_down": 1 + sum(not put.was_served for put in puts),
                "puts": 1 + len(puts),
                "recovered": max(recovered_at) - back_at,
            }

    def _open(self, address: Address) -> tuple[Contender, Any]:
        contender = self._contender(self._place(address))

        return contender, contender.prepare(self._name)

    def _open_warm(self, address: Address) -> tuple[Contender, Any]:
        """Open it, and have it open whatever it opens when it is used."""
        contender, key = self._open(address)
        contender.get(contender.prepare(f"{WARM_UP}_{self._name}"))

        return contender, key

    def _place(self, address: Address) -> Place:
        return Place(folder=self._folder, redis=self._redis, control_plane=address)

    def _get(self, address: Address) -> str:
        contender, key = self._open(address)

        return contender.get(key)

    def _recovery(
        self, children: list[Child], control_plane: ControlPlane, killed_at: float, cut: float
    ) -> dict[str, Any]:
        reported = first_to_report(children, within=cut)
        beyond = None
        if reported:
            first = min(child.report() for child in reported)
            beyond = first - killed_at - control_plane.delay
        for child in children:
            child.kill()

        return {"beyond": beyond, "puts": 1 + len(control_plane.puts())}


def _insist(contender: Contender, key: Any) -> None:
    """Ask until there is a credential.

    After a failure a caller waits as long as the cache asks it to. If the cache does not say, the
    caller backs off by the rule that our cache applies to all processes together.
    """
    failures = 0
    while True:
        try:
            contender.get(key)
        except contender.failures as error:
            failures += 1
            advised = contender.advised_pause(error)
            time.sleep(_backoff(failures) if advised is None else advised)
        else:
            return


def _backoff(failures: int) -> float:
    if failures == 1:
        return 0.0

    return float(min(_BACKOFF_CAP, _BACKOFF_BASE * 2 ** (failures - 2)) * random.uniform(0.5, 1.0))


def _time_calls(get: Callable[[Any], object], key: Any) -> float:
    def run(calls: int) -> float:
        started = time.perf_counter()
        for _ in range(calls):
            get(key)
        return (time.perf_counter() - started) / calls

    calls = _a_slice(run(20))

    return median(run(calls) for _ in range(_SLICES)) * 1e6


async def _time_awaits(get: Callable[[Any], Awaitable[object]], key: Any) -> float:
    async def run(calls: int) -> float:
        started = time.perf_counter()
        for _ in range(calls):
            await get(key)
        return (time.perf_counter() - started) / calls

    calls = _a_slice(await run(20))

    return median([await run(calls) for _ in range(_SLICES)]) * 1e6


def _a_slice(seconds_each: float) -> int:
    return max(1, int(_SLICE / seconds_each))


def main() -> None:
    name, contender, options = sys.argv[1:]
    arguments = json.loads(options)
    redis = arguments.pop("redis")
    with tempfile.TemporaryDirectory(prefix="td-bench-") as folder:
        experiment = Experiment(CONTENDERS[contender], Path(folder), redis)
        print(json.dumps(getattr(experiment, name)(**arguments)))


if __name__ == "__main__":
    main()
