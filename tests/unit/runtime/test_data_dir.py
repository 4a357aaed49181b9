"""The data folder: half made, without a key, or closed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from td_runtime.config import load_config
from td_runtime.data_dir import DataDir
from td_runtime.errors import StoreError
from td_runtime.folders import check_folders


def test_half_a_key_of_a_killed_process_with_our_id_is_no_obstacle(data_dir: Path) -> None:
    """In a container every start has the same process id: the draft of the last one is there."""
    (data_dir / f"secret.{os.getpid()}").write_text("tr_prod_ha")

    key = DataDir(data_dir).secret()

    assert key == DataDir(data_dir).secret()
    assert len(key.reveal()) > 30
    assert sorted(os.listdir(data_dir)) == ["secret"]


def test_an_empty_key_is_found_before_anything_starts(tmp_path: Path) -> None:
    """`check` looks at what `start` would refuse, and makes nothing."""
    config = tmp_path / "td-runtime.toml"
    config.write_text('[credentials]\ndir = "credentials"\n')
    loaded = load_config(config)
    folder = loaded.runtime.data_dir

    check_folders(loaded)
    assert not folder.exists()

    folder.mkdir(mode=0o700)
    (folder / "secret").touch()
    with pytest.raises(StoreError, match="the API key is empty"):
        check_folders(loaded)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """With what to do, and not by whichever file is opened first."""
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StoreError, match="the data folder cannot be written"):
            DataDir(tmp_path).check()
    finally:
        tmp_path.chmod(0o700)
