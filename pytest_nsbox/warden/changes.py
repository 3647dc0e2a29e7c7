"""What a box changed in its root, read from the writable layers of its overlays. Source:
Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Set as AbstractSet

    Change = tuple[str, str]

_OPAQUE = ("trusted.overlay.opaque", "user.overlay.opaque")
_REDIRECT = ("trusted.overlay.redirect", "user.overlay.redirect")


def list_changes(layers: list[tuple[str, str, str]], ours: AbstractSet[str]) -> list[Change]:
    """Return (kind, path) of every path that differs, in order: A added, C changed, D deleted.

    layers  of each overlay: where it is mounted in the box, its upper directory, its lower directory
    ours    paths that were made for the box and are no change

    A directory counts as changed if its own mode or owner did, or if it was replaced; what is in it is told by itself.
    """
    changes: list[Change] = []
    for target, upper, lower in layers:
        prefix = "" if target == "/" else target
        changes += (change for change in _below(upper, lower, prefix) if change[1] not in ours)
    return sorted(changes, key=lambda change: change[1])


def _below(upper: str, lower: str | None, shown: str) -> Iterator[Change]:
    """Walk `upper`; `lower` is the directory that it lies over, or None if there is none or none that shows through."""
    try:
        with os.scandir(upper) as scanned:
            entries = list(scanned)
    except OSError:
        # Changed under us: the box still runs.
        return
    for entry in entries:
        path = f"{shown}/{entry.name}"
        try:
            new = entry.stat(follow_symlinks=False)
        except OSError:
            continue
        under = f"{lower}/{entry.name}" if lower is not None else None
        old = _status(under)
        if stat.S_ISCHR(new.st_mode) and new.st_rdev == 0:
            yield "D", path
        elif not stat.S_ISDIR(new.st_mode):
            yield "C" if old is not None else "A", path
        elif old is None or not stat.S_ISDIR(old.st_mode):
            yield "A" if old is None else "C", path
            yield from _below(entry.path, None, path)
        elif _has(entry.path, _OPAQUE) or _has(entry.path, _REDIRECT):
            yield "C", path
            yield from _below(entry.path, None, path)
            yield from (("D", f"{path}/{name}") for name in _names(under) if _status(f"{entry.path}/{name}") is None)
        else:
            if (new.st_mode, new.st_uid, new.st_gid) != (old.st_mode, old.st_uid, old.st_gid):
                yield "C", path
            yield from _below(entry.path, under, path)


def _status(path: str | None) -> os.stat_result | None:
    if path is None:
        return None
    try:
        return os.lstat(path)
    except OSError:
        return None


def _has(path: str, names: tuple[str, ...]) -> bool:
    try:
        return any(name in names for name in os.listxattr(path, follow_symlinks=False))
    except OSError:
        return False


def _names(path: str | None) -> list[str]:
    try:
        return sorted(os.listdir(path)) if path is not None else []
    except OSError:
        return []
