"""`make chaos`: one campaign in full, and its summary."""

from __future__ import annotations

import argparse
import secrets
import shutil
import sys
import tempfile
from pathlib import Path

from tests.chaos import campaign
from tests.chaos.campaign import Report
from tests.chaos.scale import Scale, full, small

_SEED = 20_250_716
_SHOWN = 20
"""Faults that are printed; the diaries have them all."""


def main() -> int:
    """Run a campaign; 0 if everything held."""
    arguments = _parse()
    seed = secrets.randbelow(10**9) if arguments.seed == "random" else int(arguments.seed)
    scale = small(seed) if arguments.small else full(seed)
    print(
        f"chaos: seed {seed}, {scale.writers} processes x {scale.writes} writes on {scale.slots} "
        f"slots, at most {scale.bound:.0f} s",
        flush=True,
    )
    folder = Path(tempfile.mkdtemp(prefix="td-chaos-"))
    report = campaign.run(scale, folder)
    _print(report)
    if report.faults:
        print(f"\nFAILED. The diaries and outputs are in {folder}")
        return 1
    shutil.rmtree(folder)
    print("\nEverything held.")

    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", default=str(_SEED), help="a number, or `random`")
    parser.add_argument("--small", action="store_true", help="the campaign of the test suite")

    return parser.parse_args()


def _print(report: Report) -> None:
    scale = report.scale
    _print_counts("attacks", report.attacks)
    if not report.is_disk_filled:
        print("  skipped: fill the disk (mounting a tmpfs needs root)")
    _print_counts("mints, by their reason", report.reasons)
    _print_counts("what the caches said", _cache_events(report.events))
    print(f"\n{report.puts} PUTs, {report.retries} of them further tries of one mint; ", end="")
    print(f"{report.cold_puts} before the first attack, for {scale.slots} cold slots")
    for is_attacked, where in ((False, "in sound conditions"), (True, "under attack")):
        bound = scale.longest_wait_attacked if is_attacked else scale.longest_wait
        wait = report.waits.get(is_attacked, "none that could be felt")
        print(f"longest wait beyond the mint {where}: {wait}; bound {bound:.0f} s")
    print(
        f"{report.written} records to write, {report.stored} stored, {report.read} read after "
        f"dedupe; {report.events.get('sheet.failed', 0)} stream writers failed and were replaced"
    )
    print(f"{report.seconds:.0f} s")
    for fault in report.faults[:_SHOWN]:
        print(f"\nVIOLATION: {fault}")
    if len(report.faults) > _SHOWN:
        print(f"\n... and {len(report.faults) - _SHOWN} more")


def _print_counts(title: str, counts: dict[str, int]) -> None:
    print(f"\n{title}:")
    for name, count in sorted(counts.items()):
        print(f"  {count:6}  {name}")


def _cache_events(events: dict[str, int]) -> dict[str, int]:
    return {
        name: count
        for name, count in events.items()
        if name.startswith(("credential.", "cache.", "lock.")) and name != "cache.counted"
    }


__all__ = ["Scale", "main"]

if __name__ == "__main__":
    sys.exit(main())
