"""Is a run store whole? SQLite's own check, and the rules that its rows must keep."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from td_runtime.store import sqlite_text as sql
from td_runtime.store.sqlite_file import connect_readonly, disconnect, translated

__all__ = ["check"]

_MOST: Final = 20
"""Problems of SQLite's own check that are told; behind them everything is broken anyway."""

_PHASE_OF: Final = " ".join(f"WHEN '{status}' THEN {phase}" for status, phase in sql.PHASES.items())

_RULES: Final = (
    (
        "has a phase that is not its status's",
        f"SELECT id FROM runs WHERE iif(phase > 3, 0, phase) IS NOT CASE status {_PHASE_OF} END",  # noqa: S608
    ),
    ("executes and has no owner", "SELECT id FROM runs WHERE phase = 1 AND owner IS NULL"),
    (
        "is in the queue and has an owner",
        "SELECT id FROM runs WHERE phase NOT IN (1, 2) AND owner IS NOT NULL",
    ),
    (
        "is finished and has no end, or has one and is not finished",
        "SELECT id FROM runs WHERE (phase = 2) <> (finished_at IS NOT NULL)",
    ),
    (
        "has more excused attempts or crashes than attempts",
        "SELECT id FROM runs WHERE excused > attempt OR crashes > attempt",
    ),
    (
        "is at another place in its queue than its time and priority say",
        "SELECT id FROM runs WHERE rank <> run_at - priority",
    ),
    (
        "has no payload",
        (
            "SELECT id FROM runs WHERE NOT EXISTS "
            "(SELECT 1 FROM payloads WHERE payloads.seq = runs.seq)"
        ),
    ),
    (
        "is nobody's payload",
        (
            "SELECT 'row ' || seq FROM payloads WHERE NOT EXISTS "
            "(SELECT 1 FROM runs WHERE runs.seq = payloads.seq)"
        ),
    ),
    (
        "is nobody's metadata",
        (
            "SELECT 'row ' || seq FROM metadata WHERE NOT EXISTS "
            "(SELECT 1 FROM runs WHERE runs.seq = metadata.seq)"
        ),
    ),
    (
        "is nobody's tag",
        (
            "SELECT 'row ' || seq FROM tags WHERE NOT EXISTS "
            "(SELECT 1 FROM runs WHERE runs.seq = tags.seq)"
        ),
    ),
    (
        "has tags that lists by tag do not find",
        (
            "SELECT id FROM runs WHERE tags IS NOT NULL AND EXISTS ("
            "SELECT 1 FROM json_each(runs.tags) AS each WHERE NOT EXISTS "
            "(SELECT 1 FROM tags WHERE tag = each.value AND tags.seq = runs.seq))"
        ),
    ),
    (
        "has an idempotency key that answers with another task's or key's run",
        (
            "SELECT run_id FROM idempotency JOIN runs ON runs.id = run_id "
            "WHERE runs.task <> idempotency.task OR runs.idempotency_key IS NOT key"
        ),
    ),
    (
        "is counted wrongly in the history",
        (
            "SELECT task || ' ' || status FROM ("
            "SELECT task, status, count(*) AS runs FROM runs WHERE phase = 2 GROUP BY 1, 2 "
            "EXCEPT SELECT task, status, runs FROM history) "
            "UNION SELECT task || ' ' || status FROM ("
            "SELECT task, status, runs FROM history WHERE runs <> 0 "
            "EXCEPT SELECT task, status, count(*) FROM runs WHERE phase = 2 GROUP BY 1, 2)"
        ),
    ),
)
"""What must not be found: how to say it of what was found, and the query that finds it."""


def check(path: Path) -> list[str]:
    """Return what is wrong with a run store or a backup of one, one line each; nothing is healed.

    Raises:
        StoreError: It cannot be opened at all.
    """
    connection = connect_readonly(path)
    try:
        with translated(path):
            connection.execute("BEGIN")
            return list(_problems(connection))
    finally:
        disconnect(connection)


def _problems(connection: sqlite3.Connection) -> Iterator[str]:
    damage = [text for (text,) in connection.execute(f"PRAGMA integrity_check({_MOST})")]
    if damage != ["ok"]:
        yield from damage
        return  # what a damaged file says of its rows is worth nothing
    for what, query in _RULES:
        found = [name for (name,) in connection.execute(query)]
        if found:
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            yield f"{found[0]}{more}: {what}"
