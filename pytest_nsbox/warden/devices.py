"""Devices of the host: those that boxes are let in to, and the disk that the scratch lies on."""

from __future__ import annotations

import errno
import os
import stat

from pytest_nsbox.kernel import files
from pytest_nsbox.kernel.mount import read_mounts
from pytest_nsbox.policy.errors import BoxFailed, KernelError
from pytest_nsbox.policy.hostmounts import is_within, parse_mountinfo, visible

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from pytest_nsbox.warden.doors import Doors

    class Put(Protocol):
        """Attach a mount at a place in the tree."""

        def __call__(self, mount: int, target: str, *, directory: bool = True) -> object: ...


def let_in(doors: Doors, put: Put, dev: int, path: str, *, made: bool) -> None:
    """Show the host's device `path` in a box.

    dev   the box's /dev
    made  make a node of the box's own, which its root may open; else the host's node is bound, with the host's rights
    """
    try:
        at = os.stat(path)
    except OSError as error:
        raise BoxFailed(f"devices: {path}: {os.strerror(error.errno or errno.EIO)}") from None
    if not stat.S_ISCHR(at.st_mode) and not stat.S_ISBLK(at.st_mode):
        raise BoxFailed(f"devices: {path} is no device")
    name = path.removeprefix("/dev/")
    parts = name.split("/")
    for depth in range(1, len(parts)):
        _unless_there(doors.make_directory, "/".join(parts[:depth]), 0o755, at=dev)
    if made:
        mode = stat.S_IFMT(at.st_mode) | 0o666
        _unless_there(files.attempt, "mknod", path, os.mknod, name, mode, at.st_rdev, dir_fd=dev)
        return
    _unless_there(doors.make_file, name, at=dev)
    put(doors.clone_tree(path), path, directory=False)


def _unless_there(make: Callable[..., object], *arguments: object, **options: object) -> None:
    try:
        make(*arguments, **options)
    except KernelError as error:
        # A device that every box has, or a directory of two.
        if error.errno != errno.EEXIST:
            raise


def find_disk(path: str) -> str:
    """Return the number ("8:0") of the whole disk, or of the device-mapper device, that `path` lies on."""
    number = os.stat(path).st_dev
    if os.major(number) == 0:
        # btrfs numbers its subvolumes itself; a tmpfs or a network's file system lies on no disk.
        mounts = [mount for mount in visible(parse_mountinfo(read_mounts())) if is_within(path, mount.target)]
        mount = max(mounts, key=lambda each: len(each.target)) if mounts else None
        number = _number_of(mount.source if mount is not None else "")
        if number == 0:
            kind = mount.fstype if mount is not None else "unknown"
            raise BoxFailed(f"io: the scratch lies on {kind}, which is on no disk: set TMPDIR to a directory on one")
    name = f"{os.major(number)}:{os.minor(number)}"
    place = os.path.realpath(f"/sys/dev/block/{name}")
    # The kernel slows whole disks only.
    if os.path.exists(f"{place}/partition"):
        with open(f"{os.path.dirname(place)}/dev", encoding="ascii") as file:
            return file.read().strip()
    return name


def _number_of(source: str) -> int:
    try:
        at = os.stat(source)
    except OSError:
        return 0
    return at.st_rdev if stat.S_ISBLK(at.st_mode) else 0
