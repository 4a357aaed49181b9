"""`make chaos-runs`: one campaign in full, and its summary."""

from __future__ import annotations

import argparse
import secrets
import shutil
import sys
import tempfile
from pathlib import Path

from tests.chaos_runs import campaign
from tests.chaos_runs.campaign import Report
from tests.chaos_runs.figures import Figures
from tests.chaos_runs.scale import full, small

_SEED = 20_261_123
_SHOWN = 5
"""Faults of one sort that are printed; what was left behind has them all."""


def main() -> int:
    """Run a campaign; 0 if everything held."""
    arguments = _parse()
    seed = secrets.randbelow(10**9) if arguments.seed == "random" else int(arguments.seed)
    scale = small(seed) if arguments.small else full(seed)
    print(
        f"chaos-runs: seed {seed}, {scale.runs} runs in {scale.workers} workers, the supervisor "
        f"killed {scale.restarts} times, at most {scale.bound:.0f} s",
        flush=True,
    )
    folder = Path(tempfile.mkdtemp(prefix="td-chaos-runs-"))
    report = campaign.run(scale, folder)
    _print(report)
    if report.faults:
        print(f"\nFAILED. The run store, the log, the marks and the attacks are in {folder}")
        return 1
    shutil.rmtree(folder)
    print("\nEverything held.")

    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos_runs", description=__doc__)
    parser.add_argument("--seed", default=str(_SEED), help="a number, or `random`")
    parser.add_argument("--small", action="store_true", help="the campaign of the test suite")

    return parser.parse_args()


def _print(report: Report) -> None:
    if report.figures is not None:
        _print_figures(report.figures)
    attacks = ", ".join(f"{count} x {what}" for what, count in sorted(report.strikes.items()))
    print(f"\nattacks: {attacks}; {report.lost_answers} answers lost on the way")
    print(f"{report.seconds:.0f} s")
    _print_faults(report.faults)


def _print_faults(faults: list[str]) -> None:
    sorts: dict[str, list[str]] = {}
    for fault in faults:
        sorts.setdefault(fault.partition(":")[0], []).append(fault)
    for of_sort in sorts.values():
        for fault in of_sort[:_SHOWN]:
            print(f"\nVIOLATION: {fault}")
        if len(of_sort) > _SHOWN:
            print(f"\n... and {len(of_sort) - _SHOWN} more of this sort")


def _print_figures(figures: Figures) -> None:
    print("\nruns, by kind and outcome:")
    for (kind, status), count in sorted(figures.statuses.items()):
        print(f"  {count:6}  {kind} {status}")
    print(
        f"\n{figures.runs} runs, {figures.children} of them children; {figures.repeats} requests "
        "again with a key that was there\n"
        f"{figures.begun} attempts began, {figures.cut_short} of them ended with their worker; "
        f"{figures.excused} hand-outs excused, {figures.crashes} blamed on their run"
    )
    ends = ", ".join(f"{count} with {status}" for status, count in sorted(figures.deaths.items()))
    print(f"workers ended: {ends}; {figures.alone} with one run, {figures.together} with several")
    print(f"from the kill of a worker to the next begin: {_spread(figures.again)}")
    print(f"from the kill of the supervisor to the next begin: {_spread(figures.after_restart)}")


def _spread(seconds: list[float]) -> str:
    if not seconds:
        return "never"
    middle, late = seconds[len(seconds) // 2], seconds[len(seconds) * 99 // 100]

    return f"median {1000 * middle:.0f} ms, p99 {1000 * late:.0f} ms ({len(seconds)})"


if __name__ == "__main__":
    sys.exit(main())
