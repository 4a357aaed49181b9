"""What of a new config is followed while the runtime runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from td_runtime import reload
from td_runtime.config import Config, load_config
from td_runtime.config.decode import list_keys

OLD = """
[runtime]
data_dir = "data"
workers = 2
[control_plane]
secret_key = {env = "OLD_KEY"}
[log]
format = "json"
[[tasks]]
id = "a"
entrypoint = "tasks:a"
"""


def read(folder: Path, text: str) -> Config:
    path = folder / "td-runtime.toml"
    path.write_text(text)

    return load_config(path, {"OLD_KEY": "tr_prod_old", "NEW_KEY": "tr_prod_new"})


def test_the_fixed_keys_are_keys() -> None:
    """What is said to need a restart is what the config file calls it."""
    assert set(reload._FIXED) <= set(list_keys())


def test_the_same_file_changes_nothing(tmp_path: Path) -> None:
    """Secrets are compared by value, paths as they were resolved."""
    config = read(tmp_path, OLD)

    assert reload.keep_fixed(config, read(tmp_path, OLD)) == (config, [])


@pytest.mark.parametrize(
    ("key", "old", "new"),
    [
        ("runtime.data_dir", '"data"', '"elsewhere"'),
        ("control_plane.secret_key", '"OLD_KEY"', '"NEW_KEY"'),
        ("log.format", '"json"', '"pretty"'),
    ],
)
def test_a_fixed_key_keeps_its_value_and_the_others_are_followed(
    tmp_path: Path, key: str, old: str, new: str
) -> None:
    """It is named; both secret variables are kept from task code."""
    before = read(tmp_path, OLD)
    text = OLD.replace(old, new).replace("workers = 2", "workers = 3")
    kept, ignored = reload.keep_fixed(before, read(tmp_path, text))

    assert ignored == [key]
    assert reload._get(kept, key) == reload._get(before, key)
    assert kept.runtime.workers == 3
    assert "OLD_KEY" in kept.secret_variables
