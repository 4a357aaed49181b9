"""Every order in which processes can look, mint, evict, refresh, reset and die.

Simulated processes share one real folder: real lock files, real SQLite, one clock. What a process
does is a generator of steps, and hypothesis decides who takes the next one, how the control plane
answers, and who dies. Each access to the store is a step of its own.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    precondition,
    rule,
    run_state_machine_as_test,
)

from td_sharedcache import (
    CacheEvent,
    CredentialBackoffError,
    CredentialCache,
    MintError,
    Notice,
    Policy,
    Slot,
)
from td_sharedcache.credential import Credential
from td_sharedcache.disk import DiskStore
from td_sharedcache.errors import StoreBusyError
from td_sharedcache.event import Reporter
from td_sharedcache.flight import Flight
from td_sharedcache.minting import Minting
from td_sharedcache.row import Gap, Live, Row
from td_sharedcache.seal import Seal
from td_sharedcache.testing import FrozenClock, ScriptedMinter, make_grant

PROCESSES = 3
SLOTS = (Slot.run("run-1", "chat"), Slot.run("run-2", "chat"))
MAX_AGE = 1000.0
EVENTS = {
    *("credential.minted", "credential.shared", "credential.refreshed", "credential.evicted"),
    *("credential.eviction_refused", "credential.mint_failed", "credential.mint_backed_off"),
    *("credential.remint_unchanged", "credential.reset"),
}
# Nobody is stuck here, so no wait may end in going alone: C1 would not be promised then.
PATIENT = Policy(lock_wait=1e12, store_wait=1e12)


class SteppedStore(DiskStore):
    """A store that is busy at a task's every first try, so that others can come in between."""

    stepping = False
    is_free = False

    def load(self, slot: Slot) -> Row:
        self._step()
        return super().load(slot)

    def replace(self, slot: Slot, expected: str, row: Row) -> bool:
        self._step()
        return super().replace(slot, expected, row)

    def clear(self) -> None:
        self._step()
        super().clear()

    def _step(self) -> None:
        if not self.stepping:
            return
        self.is_free = not self.is_free
        if self.is_free:
            raise StoreBusyError


class SteppedCache(CredentialCache):
    """A cache whose flights wait for somebody to take their steps."""

    store_type: type[SteppedStore] = SteppedStore
    minting_type: type[Minting] = Minting

    def _start_afresh(self) -> None:
        super()._start_afresh()
        self._minting.__class__ = self.minting_type

    def _open_store(self, directory: Path, seal: Seal) -> SteppedStore:
        return self.store_type(
            directory, seal, clock=self._clock, reporter=self._reporter, policy=self._policy
        )

    @property
    def store(self) -> SteppedStore:
        assert isinstance(self._shared, SteppedStore)
        return self._shared

    def _refresh_ahead(self, slot: Slot) -> None:
        if slot not in self._refreshes:
            flight: Flight[None] = Flight(self._minting.refresh(slot), lambda _: None)
            self._refreshes[slot] = flight


@dataclass(eq=False)
class Task:
    """Something that a process is in the middle of."""

    kind: str
    slot: Slot | None
    steps: Any
    flight: Flight[Any] | None = None
    is_free: bool = False
    """Whether its next try to use the store succeeds."""
    is_put: bool = False
    """Whether its PUT is in flight."""
    base: Row | None = None
    """The row at the time of its last PUT."""
    credential_id: str = ""
    failures: int = 0


@dataclass(eq=False)
class Process:
    """One process of the host."""

    cache: SteppedCache
    tasks: list[Task] = field(default_factory=list)
    banned: set[str] = field(default_factory=set)
    known: list[tuple[Slot, str]] = field(default_factory=list)


class Host(RuleBasedStateMachine):
    """One host, its processes, and what must be true of them at any moment."""

    store_type: type[SteppedStore] = SteppedStore
    minting_type: type[Minting] = Minting
    seen: ClassVar[Counter[str]] = Counter()
    """How often each event happened, over all examples."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.clock = FrozenClock()
        self.events: list[CacheEvent] = []
        self.notices: list[Notice] = []
        self.in_flight: dict[Slot, Task] = {}
        self.tokens = dict.fromkeys(SLOTS, 0)
        self.is_sound = True
        self.processes = [self.start() for _ in range(PROCESSES)]
        self.observer = DiskStore(
            self.folder / "cache",
            Seal(origin="http://a", api_key="k"),
            clock=self.clock.clock,
            reporter=Reporter(None),
        )

    def teardown(self) -> None:
        try:
            # What a broken host does next would only hide how it broke.
            if self.is_sound:
                self.settle()
        finally:
            self.seen.update(event.name for event in self.events)
            for process in self.processes:
                process.cache.close()
            self.observer.close()
            self.stack.close()

    def start(self) -> Process:
        cache = SteppedCache.__new__(SteppedCache)
        cache.store_type = self.store_type
        cache.minting_type = self.minting_type
        cache.__init__(  # type: ignore[misc]  # the type of its store had to be there first
            self.folder / "cache",
            origin="http://a",
            api_key="k",
            minter=ScriptedMinter(),
            max_age=MAX_AGE,
            policy=PATIENT,
            clock=self.clock.clock,
            on_event=self.events.append,
            on_notice=self.notices.append,
        )
        return Process(cache)

    # ------------------------------------------------------------ what can happen

    processes_ = st.integers(0, PROCESSES - 1)
    picks = st.integers(0, 7)
    slots_ = st.sampled_from(SLOTS)
    answers = st.sampled_from(["new", "same", "same", "refused", "busy"])

    @rule(number=processes_, slot=slots_)
    def get(self, number: int, slot: Slot) -> None:
        process = self.processes[number]
        kept = process.cache.peek(slot)
        if kept is not None:
            assert kept.expires_at > self.clock.clock.wall(), "an expired credential was kept"
            assert kept.id not in process.banned, "a credential this process evicted was kept"
            return
        row = self.observer.load(slot)
        try:
            found, flight, is_mine = process.cache._find_or_join(slot)
        except CredentialBackoffError:
            assert isinstance(row, Gap)
            assert row.until > self.clock.clock.wall(), "backed off without a reason"
            return
        if found is not None:
            self.check_fresh(process, slot, found)
        elif is_mine:
            assert flight is not None
            task = Task("get", slot, flight._steps, flight, failures=self.failures(slot))
            process.tasks.append(task)
        self.adopt_refreshes(process)

    @rule(slot=slots_)
    def get_everywhere(self, slot: Slot) -> None:
        for number in range(PROCESSES):
            self.get(number, slot)

    @rule(number=processes_, slot=slots_, answer=answers)
    def get_undisturbed(self, number: int, slot: Slot, answer: str) -> None:
        """Get one without anybody coming in between, as it nearly always is."""
        process = self.processes[number]
        mine = len(process.tasks)
        self.get(number, slot)
        for task in process.tasks[mine:]:
            for _ in range(20):
                if task not in process.tasks:
                    break
                if task.is_put:
                    self.answer_put(process, task, answer)
                else:
                    self.advance(process, task)

    @precondition(lambda self: any(process.known for process in self.processes))
    @rule(number=processes_, pick=picks, refused=st.booleans(), at_once=st.booleans())
    def evict(self, number: int, pick: int, refused: bool, at_once: bool) -> None:
        knowing = [process for process in self.processes if process.known]
        process = knowing[number % len(knowing)]
        # Mostly the latest, sometimes one that has long been replaced.
        slot, credential_id = process.known[-1 - pick // 3 % len(process.known)]
        steps = process.cache._minting.evict(slot, credential_id, reason="x", refused=refused)
        process.banned.add(credential_id)
        task = Task("evict", slot, steps, credential_id=credential_id)
        process.tasks.append(task)
        for _ in range(10 if at_once else 1):
            if task in process.tasks:
                self.advance(process, task)

    @rule(number=processes_, luck=st.integers(0, 5))
    def reset(self, number: int, luck: int) -> None:
        # Rarely: it ends everything that the other rules are about.
        if luck:
            return
        process = self.processes[number]
        task = Task("reset", None, process.cache._minting.reset())
        process.tasks.append(task)
        self.advance(process, task)

    @precondition(lambda self: self.ready)
    @rule(pick=picks, times=st.integers(1, 4))
    def step(self, pick: int, times: int) -> None:
        process, task = self.ready[pick % len(self.ready)]
        for _ in range(times):
            if (process, task) in self.ready:
                self.advance(process, task)

    @precondition(lambda self: self.in_flight)
    @rule(pick=picks, answer=answers)
    def answer(self, pick: int, answer: str) -> None:
        task = list(self.in_flight.values())[pick % len(self.in_flight)]
        process = next(each for each in self.processes if task in each.tasks)
        self.answer_put(process, task, answer)

    def answer_put(self, process: Process, task: Task, answer: str) -> None:
        assert task.slot is not None
        if answer != "same":
            self.tokens[task.slot] += 1
        if answer in {"refused", "busy"}:
            wait = 5.0 if answer == "busy" else None
            self.advance(process, task, error=MintError(answer, retry_after=wait))
        else:
            self.advance(process, task, grant=make_grant(task.slot, self.tokens[task.slot]))

    @rule(number=processes_)
    def crash(self, number: int) -> None:
        """A process dies: the kernel frees its locks, and its connections break."""
        process = self.processes[number]
        for task in process.tasks:
            self.end_put(task)
            task.steps.close()
        process.cache.close()
        self.processes[number] = self.start()

    @precondition(lambda self: self.notices)
    @rule(number=processes_, pick=picks)
    def receive(self, number: int, pick: int) -> None:
        """A notice arrives late, twice, or never."""
        self.processes[number].cache.receive(self.notices[-1 - pick % len(self.notices)])

    @rule(seconds=st.sampled_from([0.1, 1.0, 11.0, 31.0, 905.0, 1000.0]))
    def pass_time(self, seconds: float) -> None:
        # Whatever a process is in the middle of is over in seconds: all waits have their bounds.
        is_idle = not any(process.tasks for process in self.processes)
        self.clock.advance(seconds if is_idle else min(seconds, 1.0))

    @rule()
    def grow_old(self) -> None:
        """All of it ends, and then what there is becomes due."""
        self.settle()
        self.clock.advance(905.0)

    # ------------------------------------------------------------ how it goes on

    @property
    def ready(self) -> list[tuple[Process, Task]]:
        """What is not waiting for the control plane."""
        return [(p, task) for p in self.processes for task in p.tasks if not task.is_put]

    def advance(
        self, process: Process, task: Task, *, grant: Any = None, error: Exception | None = None
    ) -> None:
        """Take one step of a task, and check what it did to the rows."""
        before, self.is_sound = self.rows(), False
        self.end_put(task)
        store = process.cache.store
        store.stepping, store.is_free = True, task.is_free
        try:
            step = task.steps.throw(error) if error else task.steps.send(grant)
        except StopIteration as end:
            process.tasks.remove(task)
            self.finish(process, task, end.value)
        except MintError as failed:
            process.tasks.remove(task)
            self.fail(task, failed)
        else:
            if isinstance(step, Slot):
                self.begin_put(task, before)
        finally:
            store.stepping, task.is_free = False, store.is_free
        for slot in SLOTS:
            self.check_change(process, task, before[slot], self.observer.load(slot))
        assert not [event for event in self.events if event.name == "cache.degraded"]
        self.is_sound = True

    def finish(self, process: Process, task: Task, result: Any) -> None:
        if task.kind == "refresh":
            assert task.slot is not None
            process.cache._refreshes.pop(task.slot, None)
        if task.kind == "evict":
            process.cache._noted(result, task.slot, task.credential_id, "x")  # type: ignore[arg-type]
        if task.flight is None or task.kind != "get":
            return
        assert task.slot is not None
        task.flight._land(result)
        self.check_fresh(process, task.slot, result)

    def fail(self, task: Task, error: MintError) -> None:
        assert task.kind == "get", "only a caller that waits may get an error"
        assert task.flight is not None
        task.flight._fail(error)
        if not isinstance(error, CredentialBackoffError):
            assert task.slot is not None
            assert self.failures(task.slot) > task.failures, "C5: the error of an older flight"

    def begin_put(self, task: Task, rows: dict[Slot, Row]) -> None:
        assert task.slot is not None
        assert task.slot not in self.in_flight, "C1: two PUTs of one slot are in flight"
        row, now = rows[task.slot], self.clock.clock.wall()
        if isinstance(row, Gap):
            assert row.until <= now, "C5: a PUT during the pause"
        elif task.kind == "refresh":
            assert row.refresh_at <= now, "C7: a refresh that is not due"
        else:
            assert row.credential.expires_at <= now, "a PUT without a reason"
        task.base, task.is_put = row, True
        self.in_flight[task.slot] = task

    def end_put(self, task: Task) -> None:
        if task.is_put:
            assert task.slot is not None
            del self.in_flight[task.slot]
            task.is_put = False

    def adopt_refreshes(self, process: Process) -> None:
        flying = {task.flight for task in process.tasks}
        for slot, flight in process.cache._refreshes.items():
            if flight not in flying:
                process.tasks.append(Task("refresh", slot, flight._steps, flight))

    # ------------------------------------------------------------ what must hold

    def rows(self) -> dict[Slot, Row]:
        return {slot: self.observer.load(slot) for slot in SLOTS}

    def failures(self, slot: Slot) -> int:
        failed = [event for event in self.events if event.name == "credential.mint_failed"]
        return sum(event.fields["slot"] == slot for event in failed)

    def check_fresh(self, process: Process, slot: Slot, found: Credential) -> None:
        """Whoever looked has what everybody has."""
        assert self.observer.load(slot).id == found.id, "not the slot's credential"
        assert found.slot == slot
        assert found.expires_at > self.clock.clock.wall(), "it had expired"
        assert found.id not in process.banned, "it had been evicted by this very process"
        if (slot, found.id) not in process.known:
            process.known.append((slot, found.id))

    def check_change(self, process: Process, task: Task, old: Row, new: Row) -> None:
        """A row changes only at the hands of somebody who knew it."""
        if old.id == new.id or task.kind == "reset":
            return
        if isinstance(old, Live) and isinstance(new, Gap) and new.failure is None:
            assert old.id in process.banned, "C3: a credential was evicted that nobody named"
        else:
            assert task.base is not None, f"C3: a row was changed without a PUT: {old} -> {new}"
            assert task.base.id == old.id, "C3, C11: an answer replaced what came after its PUT"

    def settle(self) -> None:
        """Everybody stops failing: one credential a slot, and nobody waits for ever."""
        for _ in range(200):
            for process in self.processes:
                for task in list(process.tasks):
                    if task.is_put:
                        self.answer_put(process, task, "new")
                    else:
                        self.advance(process, task)
        assert not any(process.tasks for process in self.processes), "somebody waits for ever"


def run(host: type[Host], *, examples: int, **options: Any) -> None:
    run_state_machine_as_test(
        host,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            # Reset and time are rare enough; a failure is told at once, and not shrunk for minutes.
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
            **options,
        ),
    )


def test_every_interleaving_keeps_the_rules() -> None:
    """C1, C3, C4, C5, C7, C11: whatever the order of steps, answers, evictions and deaths."""
    Host.seen.clear()

    run(Host, examples=150)

    # An exploration that never gets there would hold anything.
    assert set(Host.seen) >= EVENTS


class StoreThatForgetsToCompare(SteppedStore):
    """Puts a row in the place of whatever is there."""

    def replace(self, slot: Slot, expected: str, row: Row) -> bool:
        self._step()
        return DiskStore.replace(self, slot, DiskStore.load(self, slot).id, row)


class StoreWithoutLocks(SteppedStore):
    """Lets everybody mint."""

    @contextmanager
    def stripe(self, slot: Slot) -> Iterator[bool]:
        yield True


class MintingThatEvictsWhateverIsThere(Minting):
    """Does not ask whether the credential that failed is still the current one."""

    def _cut(self, store: Any, slot: Slot, credential_id: str, refused: bool) -> Any:
        row = yield from self._patiently(lambda: store.load(slot))
        if not isinstance(row, Live):
            return False
        gap = self._evicted(row, refused=refused)
        return (yield from self._patiently(lambda: store.replace(slot, row.id, gap)))


class MintingThatDoesNotReadAgain(Minting):
    """Looks before it has the lock, and not again under it."""

    def _fetch_from(self, store: Any, slot: Slot, seen: str | None) -> Any:
        while True:
            era = self._local.era
            row = yield from self._patiently(lambda: store.load(slot))
            seen = row.id if seen is None else seen
            yield 0.0
            with store.stripe(slot) as held:
                found = self._judge(slot, row, seen, era)
                if found is None and held:
                    found = yield from self._fill(store, slot, row, era)
            if found is not None:
                return found
            yield 0.0


class MintingThatForgetsPauses(Minting):
    """Mints again at once, whatever happened before."""

    def _check_backoff(self, slot: Slot, gap: Gap) -> None:
        pass


@pytest.mark.parametrize(
    ("store", "minting", "says"),
    [
        (StoreThatForgetsToCompare, Minting, "C3"),
        (StoreWithoutLocks, Minting, "C1|C5"),
        (SteppedStore, MintingThatEvictsWhateverIsThere, "C3: a credential was evicted"),
        (SteppedStore, MintingThatDoesNotReadAgain, ""),
        (SteppedStore, MintingThatForgetsPauses, "C5: a PUT during the pause"),
    ],
)
def test_a_cache_with_a_rule_removed_is_found_out(
    store: type[SteppedStore], minting: type[Minting], says: str
) -> None:
    """The exploration fails once a compare, the lock, the second look or the pause is removed."""
    host = type("Mutant", (Host,), {"store_type": store, "minting_type": minting})

    with pytest.raises(AssertionError, match=says or None):
        run(host, examples=300)
