"""How soon the others have a credential when the process that mints it is killed.

Three processes wait when the fourth gets SIGKILL in the middle of its PUT. Measured from the kill
to the first credential, less the 50 ms that the new PUT takes. Run it with `make bench-cache`.
"""

from __future__ import annotations

from statistics import median

from _figures import print_table
from peers.arena import Outcome, arena
from peers.contenders import LEASE

OPTIONS = {"waiters": 3, "delay": 0.05, "cut": 25.0}
ROUNDS = 7
ROUNDS_OF_LEASES = 3
PROMPT = {
    "OursBlocking": "CredentialCache.get_blocking",
    "OursAsync": "CredentialCache.get",
    "FilelockJson": "JSON file and filelock",
    "DogpileFile": "dogpile.cache, dbm file",
}
LEASED = {
    "DiskcacheLease": f"diskcache.Lock, expire={LEASE}",
    "DogpileRedisLease": f"dogpile.cache, Redis, distributed_lock, lock_timeout={LEASE}",
    "CashewsDisk": f"cashews on disk, lock of {LEASE} s",
    "CashewsRedis": f"cashews, Redis, lock of {LEASE} s",
}
FOR_EVER = {
    "DiskcacheLock": "diskcache.Lock as it comes",
    "DogpileRedisLock": "dogpile.cache, Redis, distributed_lock",
}


def main() -> None:
    with arena() as place:
        seen = place.run_all("kill", dict.fromkeys(PROMPT, ROUNDS), **OPTIONS)
        # These do little but wait, so they wait together.
        slow = dict.fromkeys(LEASED, ROUNDS_OF_LEASES) | dict.fromkeys(FOR_EVER, 1)
        seen |= place.run_beside("kill", slow, **OPTIONS)
        print_table(
            "The minter is killed: time to the next credential beyond its PUT",
            ["cache", "ms", "worst", "PUTs, the killed one included", "rounds"],
            [
                [label, *_describe(seen[name])]
                if seen[name]
                else [label, place.absence(name), *[""] * 3]
                for name, label in {**PROMPT, **LEASED, **FOR_EVER}.items()
            ],
        )
        print("\nGoal, for ours: at most 20 ms.")


def _describe(rounds: list[Outcome]) -> list[str]:
    seen = [one["beyond"] for one in rounds if one["beyond"] is not None]
    puts = sorted({one["puts"] for one in rounds})
    if len(seen) < len(rounds):
        figures = [f"never (given up after {OPTIONS['cut']:.0f} s)", ""]
    else:
        figures = [f"{median(seen) * 1e3:,.0f}", f"{max(seen) * 1e3:,.0f}"]

    return [*figures, "/".join(str(count) for count in puts), str(len(rounds))]


if __name__ == "__main__":
    main()
