"""The attacks, and the seeded order in which they come.

The seed fixes which attacks come in which order, against which slots and by how much. Which process
is minting at that moment is the machine's affair.
"""

from __future__ import annotations

import heapq
import random
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import count

from tests.chaos import disk
from tests.chaos.arena import Arena
from tests.chaos.diary import Diary
from tests.chaos.fleet import Fleet
from tests.gateway_process import GatewayProcess

_GLANCE = 0.001
_HUNT = 2.0
"""Seconds to wait for a process to be minting."""
_MENDED_AFTER = 1.0
"""Seconds after which a damage that nobody has met is made one that everybody meets."""


class Attacks:
    """Draws attacks from a deck, shuffled anew each time it is empty."""

    def __init__(
        self,
        arena: Arena,
        fleet: Fleet,
        gateway: GatewayProcess,
        diary: Diary,
        *,
        can_fill: bool,
    ) -> None:
        self._arena = arena
        self._scale = arena.scale
        self._fleet = fleet
        self._gateway = gateway
        self._diary = diary
        self._can_fill = can_fill
        self._dice = random.Random(arena.scale.seed)
        self._deck: list[Callable[[], str]] = []
        self._later: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = count()
        self._rounds = count()
        self._inode: int | None = None
        self._looked_at = time.time()
        self.counts: Counter[str] = Counter()

    def strike(self) -> float:
        """Make the next attack; gives the seconds until the one after."""
        if not self._deck:
            self._deck = self._new_deck()
        name = self._deck.pop()()
        self.counts[name] += 1
        self._diary.note("attack.made", attack=name)

        return self._dice.uniform(*self._scale.calm)

    def tend(self) -> None:
        """Undo what is due, and look whether the shared file is still the same."""
        while self._later and self._later[0][0] <= time.monotonic():
            heapq.heappop(self._later)[2]()
        self._watch_file()

    def end(self) -> None:
        """Undo everything."""
        while self._later:
            heapq.heappop(self._later)[2]()
        self._gateway.clear_faults()

    # --- the deck ------------------------------------------------------------------------------

    def _new_deck(self) -> list[Callable[[], str]]:
        deck = [
            *[self._kill_any] * 2,
            *[self._kill_minting] * 4,
            *[self._stop_any] * 2,
            *[self._stop_minting] * 2,
            *[self._revoke_one] * 8,
            *[self._revoke_behind_a_back] * 3,
            self._revoke_all,
            *[self._delay_puts] * 3,
            *[self._fail_puts] * 2,
            self._fail_puts_for_long,
            *[self._drop_puts] * 2,
            self._fail_appends,
            self._delay_appends,
            *[self._drop_appends] * 2,
            self._delete_folder,
            self._corrupt_file,
        ]
        if self._scale.long_stops:
            deck.append(self._stop_minting_for_long)
        # A full disk costs every slot its exemption for a while: not in every round.
        if self._can_fill and next(self._rounds) % 2 == 0:
            deck.append(self._fill_disk)
        self._dice.shuffle(deck)

        return deck

    # --- processes -----------------------------------------------------------------------------

    def _kill_any(self) -> str:
        writer = self._any_writer()
        if writer is None:
            return "kill, but nobody was left"
        self._fleet.kill(writer)

        return "SIGKILL of a process that does not mint"

    def _kill_minting(self) -> str:
        writer = self._minting_writer()
        if writer is None:
            return "SIGKILL, but nobody minted"
        self._fleet.kill(writer)

        return "SIGKILL of a minting process"

    def _stop_any(self) -> str:
        writer = self._any_writer()
        if writer is None:
            return "stop, but nobody was left"
        self._fleet.stop(writer, self._dice.uniform(*self._scale.stop))

        return "SIGSTOP and SIGCONT of a process that does not mint"

    def _stop_minting(self) -> str:
        writer = self._minting_writer()
        if writer is None:
            return "SIGSTOP, but nobody minted"
        self._fleet.stop(writer, self._dice.uniform(*self._scale.stop))

        return "SIGSTOP and SIGCONT of a minting process"

    def _stop_minting_for_long(self) -> str:
        wait = self._scale.policy.lock_wait
        writer = self._minting_writer()
        if writer is None:
            return "SIGSTOP, but nobody minted"
        self._fleet.stop(writer, wait + self._dice.uniform(1.0, 3.0))

        return "SIGSTOP of a minting process beyond the lock's bound"

    def _any_writer(self) -> int | None:
        minting = set(self._arena.board.minting())
        able = [writer for writer in self._fleet.running if self._fleet.can_be_hit(writer)]
        idle = [writer for writer in able if writer not in minting]

        return self._dice.choice(idle or able) if able else None

    def _minting_writer(self) -> int | None:
        """Have somebody mint slowly, and give one who does, at a random point of it."""
        self._fault(
            kind="delay", target="control-plane", seconds=self._dice.uniform(0.05, 2.0), count=2
        )
        self._revoke(str(self._dice.choice(self._scale.slot_names)))
        patience = self._dice.uniform(0.0, 0.3)
        until = time.monotonic() + _HUNT
        while time.monotonic() < until:
            if any(map(self._fleet.can_be_hit, self._arena.board.minting())):
                break
            time.sleep(_GLANCE)
        time.sleep(patience)
        minting = [w for w in self._arena.board.minting() if self._fleet.can_be_hit(w)]

        return self._dice.choice(minting) if minting else None

    # --- control plane and stream store --------------------------------------------------------

    def _revoke_one(self) -> str:
        self._revoke(str(self._dice.choice(self._scale.slot_names)))

        return "revoke the tokens of a slot"

    def _revoke_behind_a_back(self) -> str:
        """Let a process find out late, when the others have renewed: it must evict nothing."""
        writer = self._any_writer()
        # The others must be able to renew meanwhile, and the stopped one must not look again first.
        self._gateway.clear_faults()
        if writer is not None:
            self._fleet.stop(writer, 0.5 * self._scale.policy.revalidate_every)
        self._revoke_all()

        return "revoke all tokens while a process is stopped"

    def _revoke_all(self) -> str:
        self._fault(kind="revoke-tokens")

        return "revoke all tokens"

    def _delay_puts(self) -> str:
        seconds, times = self._dice.uniform(0.1, 2.0), self._dice.randint(1, 6)
        self._fault(kind="delay", target="control-plane", seconds=seconds, count=times)

        return "delay PUTs"

    def _fail_puts(self) -> str:
        status, times = self._dice.choice((500, 502, 503, 504)), self._dice.randint(1, 4)
        self._fault(kind="status", target="control-plane", status=status, count=times)
        self._revoke(str(self._dice.choice(self._scale.slot_names)))

        return "answer PUTs with 5xx"

    def _fail_puts_for_long(self) -> str:
        # More than one mint tries: the failure reaches the callers, and the slot backs off.
        retry_after = self._dice.choice((None, 0.5, 2.0))
        self._fault(
            kind="status", target="control-plane", status=503, count=8, retry_after=retry_after
        )
        self._revoke(str(self._dice.choice(self._scale.slot_names)))

        return "answer PUTs with 503 until mints fail"

    def _fail_appends(self) -> str:
        status, times = self._dice.choice((500, 503, 429)), self._dice.randint(1, 10)
        self._fault(kind="status", target="stream-store", status=status, count=times)

        return "answer appends with 5xx"

    def _delay_appends(self) -> str:
        """Let a client lose patience and send again what is then stored twice."""
        self._fault(kind="delay", target="stream-store", seconds=self._scale.append_delay, count=2)

        return "delay appends"

    def _drop_puts(self) -> str:
        """Close connections: before anything happens, or in place of the answer to a PUT."""
        kind, times = self._dice.choice(("drop", "drop-after")), self._dice.randint(1, 4)
        self._fault(kind=kind, target="control-plane", count=times)
        self._revoke(str(self._dice.choice(self._scale.slot_names)))

        return f"close connections of PUTs ({kind})"

    def _drop_appends(self) -> str:
        """The same with appends, which are then stored, and sent again."""
        kind, times = self._dice.choice(("drop", "drop-after")), self._dice.randint(1, 10)
        self._fault(kind=kind, target="stream-store", count=times)

        return f"close connections of appends ({kind})"

    def _revoke(self, slot: str) -> None:
        self._fault(kind="revoke-tokens", slot=slot)

    def _fault(self, **fault: object) -> None:
        """Ask for a fault, unless one of the kind is still in force: delays would add up."""
        active = self._gateway.call("GET", "/platform/v1/faults")["faults"]
        if any(all(one[it] == fault.get(it) for it in ("kind", "target")) for one in active):
            return
        # A document without what is not given: the gateway takes no null for a number.
        asked = {name: value for name, value in fault.items() if value is not None}
        self._gateway.fault(**asked)

    # --- the folder ----------------------------------------------------------------------------

    def _delete_folder(self) -> str:
        began = time.time()
        part = disk.delete(self._arena.credentials, self._dice)
        self._diary.note("folder.attacked", kind="delete", began=began, how=part)

        return f"delete the folder: {part}"

    def _corrupt_file(self) -> str:
        began = time.time()
        paths = list(self._arena.credentials.glob("*/cache.db"))
        how = disk.corrupt(paths[0], self._dice) if paths else "nothing there"
        self._diary.note("folder.attacked", kind="corrupt", began=began, how=how)
        self._do_later(_MENDED_AFTER, partial(self._mend, self._inode))

        return f"corrupt the shared file: {how}"

    def _mend(self, inode: int | None) -> None:
        """End a damage that nobody has noticed: as long as it lasts, any PUT has its reason."""
        self._watch_file()
        if self._inode == inode:
            for path in self._arena.credentials.glob("*/cache.db"):
                disk.spoil_header(path)

    def _fill_disk(self) -> str:
        began = time.time()
        ballast = disk.fill(self._arena.disk)
        self._diary.note("folder.attacked", kind="fill", began=began, how="")
        self._do_later(
            self._dice.uniform(*self._scale.stop), lambda: ballast.unlink(missing_ok=True)
        )

        return "fill the disk"

    def _do_later(self, seconds: float, deed: Callable[[], object]) -> None:
        heapq.heappush(self._later, (time.monotonic() + seconds, next(self._numbers), deed))

    def _watch_file(self) -> None:
        """Note when the shared file is another one: whatever it held is gone."""
        now = time.time()
        paths = list(self._arena.credentials.glob("*/cache.db"))
        try:
            inode = paths[0].stat().st_ino if paths else None
        except FileNotFoundError:
            inode = None
        if inode != self._inode:
            self._diary.note("file.replaced", since=self._looked_at)
        self._inode, self._looked_at = inode, now
