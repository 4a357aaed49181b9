"""What a hit costs that processes share, beside other caches that share.

Ours is looked up in the process, and in the shared file, deciphered, every 10 s; both are here.
Run it with `make bench-cache`.
"""

from __future__ import annotations

from statistics import median

from _figures import print_table
from peers.arena import Outcome, arena

ROUNDS = 5
SIDES = {
    "OursBlocking": "CredentialCache.get_blocking",
    "OursAsync": "CredentialCache.get, awaited",
    "OursShared": "the same, from the shared file",
    "DiskcacheLock": "diskcache.get",
    "FilelockJson": "JSON file, read and parsed",
    "DiskcacheStampede": "diskcache memoize_stampede",
    "DogpileRedis": "dogpile.cache, Redis",
    "DogpileFile": "dogpile.cache, dbm file",
    "CashewsDisk": "cashews on disk, awaited",
    "CashewsRedis": "cashews, Redis, awaited",
}
IN_PROCESS = ("OursBlocking", "OursAsync")
OURS = (*IN_PROCESS, "OursShared")


def main() -> None:
    with arena() as place:
        seen = place.run_all("hit", dict.fromkeys(SIDES, ROUNDS))
        took = {name: _median(rounds) for name, rounds in seen.items() if rounds}
        fastest = min(us for name, us in took.items() if name not in OURS)
        print_table(
            "A hit that processes share",
            ["call", "µs a hit", "fastest peer takes", "goal"],
            [
                [label, f"{took[name]:.2f}", _times(name, fastest / took[name]), _goal(name)]
                if name in took
                else [label, place.absence(name), "", ""]
                for name, label in SIDES.items()
            ],
        )


def _median(rounds: list[Outcome]) -> float:
    return float(median(one["us"] for one in rounds))


def _times(name: str, times: float) -> str:
    return f"{times:.0f} times as long" if name in IN_PROCESS else ""


def _goal(name: str) -> str:
    return "20 times" if name in IN_PROCESS else "40 µs" if name == "OursShared" else ""


if __name__ == "__main__":
    main()
