"""Places in a box's tree to mount on."""

from __future__ import annotations

import errno
import os
import stat

from pytest_nsbox.policy.errors import BoxFailed, KernelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pytest_nsbox.warden.doors import Doors


def make_mount_point(doors: Doors, root: int, target: str, *, directory: bool) -> set[str]:
    """Make what is missing of `target` in the tree at `root`; return the paths that were made."""
    parts = [part for part in target.split("/") if part]
    made = set()
    above = doors.open_in(root, "/")
    try:
        for depth, part in enumerate(parts, 1):
            path = "/" + "/".join(parts[:depth])
            try:
                below = doors.open_in(root, path)
            except KernelError as error:
                if error.errno != errno.ENOENT:
                    raise
                if depth < len(parts) or directory:
                    doors.make_directory(part, at=above)
                else:
                    doors.make_file(part, at=above)
                made.add(path)
                below = doors.open_in(root, path)
            os.close(above)
            above = below
    finally:
        os.close(above)
    return made


def check_kind(doors: Doors, root: int, volume: tuple[str, str], *, directory: bool) -> None:
    """Raise BoxFailed if one of a volume, which is (source, target), is a directory and the other one is not."""
    source, target = volume
    point = doors.open_in(root, target)
    try:
        if stat.S_ISDIR(os.fstat(point).st_mode) == directory:
            return
    finally:
        os.close(point)
    kinds = "a directory, and {} is none" if directory else "no directory, and {} is one"
    raise BoxFailed(
        f"volumes: '{source}:{target}': {source} is {kinds.format(target)} (accepted: two of a kind)"
    ) from None
