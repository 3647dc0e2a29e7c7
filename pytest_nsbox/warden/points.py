"""Places in a box's tree to mount on."""

from __future__ import annotations

import errno
import os

from pytest_nsbox.policy.errors import KernelError

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
