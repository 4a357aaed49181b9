"""Whether a folder may hold credentials."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from td_sharedcache.errors import CacheDirectoryError

# Their locks are lost, late or unknown to other hosts; SQLite on them corrupts.
_NETWORK = frozenset(
    (
        *("9p", "afs", "beegfs", "ceph", "cifs", "coda", "gfs2", "glusterfs", "gpfs", "lustre"),
        *("ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "smb3", "smbfs", "virtiofs"),
    )
)
_LOCAL_FUSE = frozenset({"fuse.fuse-overlayfs"})


def ensure_private(path: Path) -> None:
    """Create the folder if it is missing, and check that only its owner can use it.

    Raises:
        CacheDirectoryError: It is not ours alone, or on a network file system.
        OSError: It cannot be created or looked at.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        _check_owner(path, os.lstat(path))

    kind = filesystem_of(path)
    if _is_network(kind):
        raise CacheDirectoryError(
            str(path),
            f"it is on a network file system ({kind}), where locks cannot be trusted",
            "Set [credentials] dir to a folder on a local disk or a tmpfs.",
        )


def filesystem_of(path: Path, mountinfo: str | None = None) -> str:
    """Give the type of the file system a path is on, or "" where the kernel does not tell.

    Args:
        path: An existing path.
        mountinfo: The text of `/proc/self/mountinfo`; read from there by default.
    """
    if mountinfo is None:
        try:
            with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as lines:
                mountinfo = lines.read()
        except OSError:
            return ""

    real = os.path.realpath(path)
    best, kind = "", ""
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        point = before.split(" ")[4].replace("\\040", " ")
        # A later line hides an earlier one at the same point.
        if len(point) >= len(best) and _is_inside(real, point):
            best, kind = point, after.split(" ")[0]

    return kind


def _check_owner(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISDIR(found.st_mode):
        raise CacheDirectoryError(
            str(path), "it is not a folder", "Remove it, or set [credentials] dir to another path."
        )
    if found.st_uid != os.geteuid():
        raise CacheDirectoryError(
            str(path),
            f"it belongs to user {found.st_uid}, not to user {os.geteuid()}",
            "Set [credentials] dir to a folder of your own.",
        )
    if found.st_mode & 0o077:
        raise CacheDirectoryError(
            str(path),
            f"others may enter it (mode {stat.S_IMODE(found.st_mode):04o})",
            f"Run: chmod 700 {path}",
        )


def _is_network(kind: str) -> bool:
    return kind in _NETWORK or (kind.startswith("fuse.") and kind not in _LOCAL_FUSE)


def _is_inside(path: str, point: str) -> bool:
    return path == point or path.startswith(point.rstrip("/") + "/")
