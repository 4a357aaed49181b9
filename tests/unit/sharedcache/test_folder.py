"""Folders that may and may not hold credentials."""

import os
import stat

import pytest

from td_sharedcache import CacheDirectoryError, CredentialCache
from td_sharedcache.folder import ensure_private, filesystem_of
from td_sharedcache.testing import ScriptedMinter

MOUNTS = """\
1 0 8:1 / / rw - ext4 /dev/sda1 rw
2 1 0:9 / /home rw,relatime shared:5 - nfs4 server:/home rw
3 2 0:10 / /home/me/with\\040space rw - tmpfs tmpfs rw
4 1 0:11 / /mnt rw - fuse.sshfs me@host: rw
5 1 8:2 / /mnt rw - xfs /dev/sda2 rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/nowhere/at/all", "ext4"),
        ("/home/me", "nfs4"),
        ("/homeless", "ext4"),
        ("/home/me/with space/x", "tmpfs"),
        ("/mnt/x", "xfs"),
    ],
)
def test_the_innermost_and_latest_mount_decides(path, kind):
    """A path is on the file system of its longest mount point, mounted last."""
    assert kind == filesystem_of(path, MOUNTS)


def test_this_machine_s_folder_is_found(tmp_path):
    """The kernel's own table is readable and names a type."""
    assert filesystem_of(tmp_path)


def test_a_network_file_system_is_refused(tmp_path, monkeypatch):
    """C10: where locks cannot be trusted the cache does not start, and says what to do."""
    monkeypatch.setattr("td_sharedcache.folder.filesystem_of", lambda path: "nfs4")

    with pytest.raises(CacheDirectoryError, match=r"network file system \(nfs4\).*local disk"):
        ensure_private(tmp_path / "c")


def test_a_missing_folder_is_created_for_its_owner_alone(tmp_path):
    """C10: 0700 whatever the umask allows."""
    before = os.umask(0)
    try:
        ensure_private(tmp_path / "a" / "b")
    finally:
        os.umask(before)

    assert stat.S_IMODE(os.stat(tmp_path / "a" / "b").st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o755, 0o710, 0o701])
def test_a_folder_that_others_may_enter_is_refused(tmp_path, mode):
    """C10: group and other bits are an error that names the cure."""
    path = tmp_path / "c"
    path.mkdir()
    path.chmod(mode)

    with pytest.raises(CacheDirectoryError, match=f"chmod 700 {path}"):
        CredentialCache(path, origin="http://a", api_key="k", minter=ScriptedMinter())


def test_a_link_or_file_in_its_place_is_refused(tmp_path):
    """C10: a link could lead into somebody else's folder."""
    (tmp_path / "file").touch()
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")

    for name in ("file", "link"):
        with pytest.raises(CacheDirectoryError, match="not a folder"):
            ensure_private(tmp_path / name)


def test_somebody_else_s_folder_is_refused(tmp_path, monkeypatch):
    """C10: credentials are not put where another user rules."""
    path = tmp_path / "c"
    path.mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)

    with pytest.raises(CacheDirectoryError, match="belongs to user"):
        ensure_private(path)
