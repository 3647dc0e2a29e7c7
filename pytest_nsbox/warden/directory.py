"""The session's directory: made, removed, and found again when its warden was killed."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time

from pytest_nsbox.kernel import cgroup, files
from pytest_nsbox.policy.errors import BoxFailed, KernelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pytest_nsbox.warden.doors import Doors

PREFIX = "nsbox-"
LAYERS = "scratch/layers"
# Owner of the directory: an id that no box can name, so that no box's root may look into it through its view of the
# host.
_NOBODY = 4_294_900_001
_NAMES = ("scratch", "host", "plain", "volumes", "base", "views", "root")
# Made when an image is used: clones of its layers (a short name, for all must be named in 255 bytes), and how they look
# together.
IMAGE_LAYERS, IMAGE_VIEWS = "l", "image"
# What tests and boxes leave behind lies only below these.
_CONTENT = ("scratch", "volumes")
# What a lock file says.
_PARENT = b"cgroup parent: "
_YOUNG = 60.0
_NO_PARENT = b"cgroups beside the warden's own"


def make(doors: Doors, path: str, cgroup_parent: str | None) -> int:
    """Make the directory `path` with its lock, held; return the lock's descriptor."""
    # Inits must get to root/, and nobody to anything else.
    doors.make_directory(path, 0o711)
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        lock = files.attempt("open", f"{path}/lock", os.open, f"{path}/lock", flags, 0o600)
    except KernelError:
        os.rmdir(path)
        raise
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.write(lock, _PARENT + os.fsencode(cgroup_parent) if cgroup_parent is not None else _NO_PARENT)
    return lock


def fill(doors: Doors, path: str, *, hidden: bool) -> None:
    """Make what is in the directory, make it a mount of its own, and go there. `remove` undoes it at any point.

    hidden  whether there is an id for it that boxes do not have
    """
    for name in _NAMES:
        doors.make_directory(f"{path}/{name}", 0o755 if name == "root" else 0o700)
    for name in ("", "/lock", *(f"/{name}" for name in _NAMES)) if hidden else ():
        files.attempt("chown", path + name, os.chown, path + name, _NOBODY, _NOBODY)
    doors.make_directory(f"{path}/{LAYERS}")
    here = doors.clone_tree(path)
    try:
        doors.attach(here, path)
        doors.change_directory(here)
    finally:
        os.close(here)


def remove(path: str) -> None:
    """Remove a session's directory, which nothing is mounted on or in any more.

    What clones of the host were mounted on is removed by rmdir alone: a mount that is still there is an error then, and
    not a host whose files are gone.
    """
    for name in (*_NAMES, IMAGE_LAYERS, IMAGE_VIEWS):
        below = f"{path}/{name}"
        if name in _CONTENT:
            files.remove_tree(below)
        else:
            _remove_mount_points(below)
    for call, target in ((os.unlink, f"{path}/lock"), (os.rmdir, path)):
        try:
            files.attempt("remove", target, call, target)
        except KernelError as error:
            if error.errno != errno.ENOENT:
                raise


def _remove_mount_points(path: str) -> None:
    try:
        with os.scandir(path) as scanned:
            entries = list(scanned)
    except FileNotFoundError:
        return
    for entry in entries:
        remove_it = os.rmdir if entry.is_dir(follow_symlinks=False) else os.unlink
        files.attempt("remove", entry.path, remove_it, entry.path)
    files.attempt("remove", path, os.rmdir, path)


def sweep(tmpdir: str) -> list[str]:
    """Remove what sessions left in `tmpdir` and in cgroups whose wardens are dead; return what could not be removed,
    and why.
    """
    problems: list[str] = []
    for name in sorted(os.listdir(tmpdir)):
        if name.startswith(PREFIX):
            try:
                _sweep_one(f"{tmpdir}/{name}", name[len(PREFIX) :])
            except (KernelError, BoxFailed, OSError, ValueError) as error:
                problems.append(str(error))
    return problems


def _sweep_one(path: str, name: str) -> None:
    try:
        at = os.lstat(path)
    except FileNotFoundError:
        return
    # In a directory that all may write to, anyone can make something of that name, and say in it what to remove.
    if not stat.S_ISDIR(at.st_mode) or at.st_uid not in (_NOBODY, os.geteuid()):
        return
    try:
        lock = os.open(f"{path}/lock", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        text = os.read(lock, 65536)
        if not text and time.time() - os.fstat(lock).st_mtime < _YOUNG:
            # Its warden has made the file and not locked it yet: it waits for us.
            return
        cgroup.sweep(os.fsdecode(text.removeprefix(_PARENT)) if text.startswith(_PARENT) else None, [name])
        remove(path)
    except BlockingIOError:
        # Its warden lives.
        return
    finally:
        os.close(lock)
