"""How many PUTs 64 hot processes send to a control plane that is down for 5 s.

A caller of ours waits as long as the error says. The others' errors say nothing, so there each
process backs off on its own, by the very rule that ours applies to all processes together.
Run it with `make bench-cache`.
"""

from __future__ import annotations

from statistics import median

from _figures import print_table
from peers.arena import Outcome, arena

OPTIONS = {"processes": 64, "delay": 0.05, "down_for": 5.0}
ROUNDS = 3
SIDES = {
    "OursBlocking": "CredentialCache.get_blocking",
    "FilelockJson": "JSON file and filelock",
    "DogpileFile": "dogpile.cache, dbm file",
    "DogpileRedisLock": "dogpile.cache, Redis, distributed_lock",
    "PerProcess": "a dict in each process (upstream)",
}


def main() -> None:
    with arena() as place:
        seen = place.run_all("outage", dict.fromkeys(SIDES, ROUNDS), **OPTIONS)
        print_table(
            "64 processes, and a control plane that answers 503 for 5 s",
            ["cache", "PUTs while down", "PUTs in all", "last process has one after, s"],
            [
                [label, *_describe(seen[name])]
                if seen[name]
                else [label, place.absence(name), *[""] * 2]
                for name, label in SIDES.items()
            ],
        )
        print("\nGoal, for ours: at most 10 PUTs while down.")


def _describe(rounds: list[Outcome]) -> list[str]:
    return [
        _span([one["puts_down"] for one in rounds]),
        _span([one["puts"] for one in rounds]),
        f"{median(one['recovered'] for one in rounds):.1f}",
    ]


def _span(counts: list[int]) -> str:
    return f"{median(counts):.0f} ({min(counts)} to {max(counts)})"


if __name__ == "__main__":
    main()
