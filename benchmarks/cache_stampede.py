"""How many PUTs a cold stampede costs, and how long the last process waits, beside other caches.

A PUT takes 50 ms. What a process waits beyond that is the cache's doing, and the machine's: 16
processes that want a CPU at the same moment share it. Run it with `make bench-cache`.
"""

from __future__ import annotations

from statistics import median

from _figures import print_table
from peers.arena import Arena, Outcome, arena

DELAY = 0.05
ROUNDS = 5
ROUNDS_OF_64 = 3
SIDES = {
    "OursBlocking": "CredentialCache.get_blocking",
    "OursAsync": "CredentialCache.get",
    "DiskcacheLock": "diskcache and diskcache.Lock",
    "FilelockJson": "JSON file and filelock",
    "DogpileFile": "dogpile.cache, dbm file",
    "DogpileRedisLock": "dogpile.cache, Redis, distributed_lock",
    "CashewsDisk": "cashews on disk, lock",
    "CashewsRedis": "cashews, Redis, lock",
    "DogpileRedis": "dogpile.cache, Redis, as it comes",
    "DiskcacheStampede": "diskcache memoize_stampede",
    "PerProcess": "a dict in each process (upstream)",
}


def main() -> None:
    with arena() as place:
        opened = _stampede(place, ROUNDS, processes=16, is_open=True)
        unopened = _stampede(place, ROUNDS, processes=16, is_open=False)
        many = _stampede(place, ROUNDS_OF_64, processes=64, is_open=True)
        print_table(
            "A credential that nobody has, wanted by all processes at once",
            [
                "cache",
                "PUTs of 16",
                "PUTs of 64",
                "worst wait of 16 beyond the PUT, ms",
                "and to open the cache",
                "of 64",
            ],
            [
                [label, _puts(opened[name] + unopened[name]), _puts(many[name])]
                + [_worst(rounds[name]) for rounds in (opened, unopened, many)]
                if opened[name]
                else [label, place.absence(name), *[""] * 4]
                for name, label in SIDES.items()
            ],
        )
        print("\nGoals, for ours: 1 PUT; at most 60 ms, and the least of those with 1 PUT.")


def _stampede(
    place: Arena, rounds: int, *, processes: int, is_open: bool
) -> dict[str, list[Outcome]]:
    wanted = dict.fromkeys(SIDES, rounds)

    return place.run_all("stampede", wanted, processes=processes, delay=DELAY, is_open=is_open)


def _puts(rounds: list[Outcome]) -> str:
    seen = sorted({one["puts"] for one in rounds})

    return str(seen[0]) if len(seen) == 1 else f"{seen[0]} to {seen[-1]}"


def _worst(rounds: list[Outcome]) -> str:
    return f"{median(one['beyond'] for one in rounds) * 1e3:.0f}"


if __name__ == "__main__":
    main()
