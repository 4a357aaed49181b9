"""Which writer writes how many records to which slot, and when: drawn from the seed alone."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

from td_sharedcache import Slot
from tests.chaos.scale import BURSTS_AT_ONCE, Scale


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What a writer writes before it waits for the acks."""

    due: float
    """Seconds after the start; later if something held the writer up."""
    targets: dict[Slot, int]
    """For each slot of the step, how many records of this writer it shall hold then."""


def steps_of(scale: Scale, writer: int) -> list[Step]:
    """Give all that one writer does, the same in each of its processes."""
    dice = random.Random(scale.seed * 1_000_003 + writer)
    deck: list[Slot] = []
    totals: Counter[Slot] = Counter()
    steps = []
    for number in range(scale.steps):
        targets: dict[Slot, int] = {}
        for _ in range(BURSTS_AT_ONCE):
            if not deck:
                deck = dice.sample(scale.slot_names, scale.slots)
            slot = deck.pop()
            totals[slot] += scale.burst
            targets[slot] = totals[slot]
        # All writers begin together, on cold slots.
        due = (number + dice.random()) * scale.spread / scale.steps if number else 0.0
        steps.append(Step(due=due, targets=targets))

    return steps


def totals_of(scale: Scale, writer: int) -> dict[Slot, int]:
    """Give how many records of one writer each slot holds in the end."""
    totals: dict[Slot, int] = {}
    for step in steps_of(scale, writer):
        totals |= step.targets

    return totals
