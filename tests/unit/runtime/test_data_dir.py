"""The data folder after a process that was killed in the middle of making it."""

from __future__ import annotations

import os
from pathlib import Path

from td_runtime.data_dir import DataDir


def test_half_a_key_of_a_killed_process_with_our_id_is_no_obstacle(data_dir: Path) -> None:
    """In a container every start has the same process id: the draft of the last one is there."""
    (data_dir / f"secret.{os.getpid()}").write_text("tr_prod_ha")

    key = DataDir(data_dir).secret()

    assert key == DataDir(data_dir).secret()
    assert len(key.reveal()) > 30
    assert sorted(os.listdir(data_dir)) == ["secret"]
