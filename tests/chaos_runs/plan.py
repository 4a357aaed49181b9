"""What a campaign asks for: fixed by its seed."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from td_worker.messages import TriggerItem
from tests.chaos_runs.scale import Scale

SHARES = {
    "quick": 28.0,
    "pause": 22.0,
    "pause_in_thread": 10.0,
    "crunch": 8.0,
    "spawn": 3.0,
    "grow": 5.0,
    "block": 2.0,
    "fail": 2.0,
    "fail_once": 4.0,
    "segfault": 0.25,
    "segfault_once": 0.3,
    "leave": 0.25,
    "obey": 3.0,
    "ignore": 0.15,
    "ignore_in_thread": 0.15,
    "overrun": 1.0,
    "overrun_and_ignore": 0.15,
    "parent": 3.0,
    "parent_in_thread": 2.0,
}
"""The kinds of runs, and how many of a hundred are of each."""

KILLERS = frozenset({"segfault", "segfault_once", "leave"})
"""Kinds that take their worker down."""
CANCELED = frozenset({"obey", "ignore", "ignore_in_thread"})
"""Kinds that go on until they are canceled from outside."""
OVERDUE = frozenset({"overrun", "overrun_and_ignore"})
"""Kinds that take longer than they may."""
UNSTOPPABLE = frozenset({"ignore", "ignore_in_thread", "overrun_and_ignore"})
"""Kinds that end only with their worker."""
PARENTS = frozenset({"parent", "parent_in_thread"})
_CHILDREN = ("quick", "pause", "pause_in_thread", "crunch", "fail_once")
_KEYED, _DELAYED = 0.08, 0.1
_SHORT = 0.1
"""What part of the time of a pause those take that are in others' way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """One run that a client asks for."""

    number: int
    kind: str
    due: float
    """Seconds after the begin when it is asked for."""
    payload: dict[str, Any]
    key: str | None
    """Its idempotency key."""
    repeats: tuple[float, ...]
    """When it is asked for again, with its key."""
    delay: float
    """Seconds that it is not to start before; 0: at once."""
    cancel_after: float | None
    """Seconds after its acceptance when it is canceled."""

    def item(self, now: float) -> TriggerItem:
        """Return what is asked for at *now*, wall clock."""
        return TriggerItem(
            task=self.kind,
            payload=msgspec.json.encode(self.payload),
            idempotency_key=self.key,
            run_at=now + self.delay if self.delay else None,
            tags=("chaos", self.kind),
        )


def wishes(scale: Scale) -> list[Wish]:
    """Return all that is asked for, in the order of time."""
    random_ = random.Random(f"{scale.seed} wishes")
    # Each kind in its share to the run, none left to chance.
    kinds = [
        kind
        for kind, share in SHARES.items()
        for _ in range(max(1, round(scale.runs * share / sum(SHARES.values()))))
    ]
    random_.shuffle(kinds)

    return [_wish(scale, random_, number, kind) for number, kind in enumerate(kinds[: scale.runs])]


def _wish(scale: Scale, random_: random.Random, number: int, kind: str) -> Wish:
    due = scale.spread * number / scale.runs
    is_keyed = random_.random() < _KEYED

    return Wish(
        number=number,
        kind=kind,
        due=due,
        payload={"n": number, **_facts(scale, random_, kind)},
        key=f"key-{number}" if is_keyed else None,
        repeats=tuple(due + random_.uniform(0.0, 5.0) for _ in range(2)) if is_keyed else (),
        delay=random_.uniform(0.1, 3.0) if random_.random() < _DELAYED else 0.0,
        cancel_after=random_.uniform(0.0, 2.0) if kind in CANCELED else None,
    )


def _facts(scale: Scale, random_: random.Random, kind: str) -> dict[str, Any]:
    if kind in PARENTS:
        one = "pause" if kind == "parent_in_thread" else None
        count = random_.randint(1, 3)
        return {
            "children": [
                (child := one or random_.choice(_CHILDREN), _facts(scale, random_, child))
                for _ in range(count)
            ]
        }
    longest = scale.longest_pause * (1.0 if kind in {"pause", "pause_in_thread"} else _SHORT)

    return {"seconds": round(random_.uniform(0.0, longest), 3), "leaves": random_.random() < 0.2}


def batches(wishes: Iterable[Wish], seed: int) -> list[list[Wish]]:
    """Divide wishes into requests: of one, or of up to 40."""
    random_ = random.Random(f"{seed} batches")
    made: list[list[Wish]] = []
    room = 0
    for wish in wishes:
        if room == 0:
            made.append([])
            room = random_.choice((1, 1, 3, 10, 40))
        made[-1].append(wish)
        room -= 1

    return made
