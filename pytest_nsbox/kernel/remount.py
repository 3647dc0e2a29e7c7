"""Attributes of mounts where there is no mount_setattr(2), which came with Linux 5.12. Source: mount(2), proc(5).

mount(2) changes a mount that has a place. One that has none gets one for a moment, is changed there, and a clone of it,
which has its attributes, takes over the caller's descriptor. That place is in our own mount namespace, at a path that
nobody looks up meanwhile: whoever calls this is alone in its namespace and has one thread.
"""

from __future__ import annotations

import os
import stat

from pytest_nsbox.kernel import libc, mount
from pytest_nsbox.policy.hostmounts import parse_mountinfo, visible

_REMOUNT = 0x20 | 0x1000  # MS_REMOUNT | MS_BIND; the flags of access times stay as they are without one of theirs
# Numbers that statvfs(3), mount(2) and mount_setattr(2) share: read-only, nosuid, nodev, noexec. What a mount has of
# them it must keep: in a user namespace the kernel refuses to take one away.
_SHARED = mount.RDONLY | mount.NOSUID | mount.NODEV | mount.NOEXEC
# A mount's root is a directory or not, and so must be the place that it gets; these are wherever boxes can be made.
_DIRECTORY, _FILE = "/sys", "/proc/version"


def set_attributes(fd: int, add: int, *, recursive: bool, target: str) -> None:
    """Give the mount that `fd` is the root of (recursive: with those below it) the attributes `add`."""
    number = _number_of(fd)
    if any(row.number == number for row in parse_mountinfo(mount.read_mounts())):
        _change(number, f"/proc/self/fd/{fd}", add, recursive=recursive, target=target)
        return
    place = _DIRECTORY if stat.S_ISDIR(os.fstat(fd).st_mode) else _FILE
    mount.attach(fd, place)
    try:
        _change(number, place, add, recursive=recursive, target=target)
        changed = mount.clone_tree(place, recursive=recursive)
    finally:
        mount.detach(place)
    os.dup2(changed, fd, inheritable=False)
    os.close(changed)


def _change(number: int, place: str, add: int, *, recursive: bool, target: str) -> None:
    """Change mount `number`, whose root is found at `place`."""
    below = [""]
    if recursive:
        rows = parse_mountinfo(mount.read_mounts())
        top = next(row.target.rstrip("/") for row in rows if row.number == number)
        found = {number}
        for row in rows:
            if row.parent in found:
                found.add(row.number)
        # What another one hides no path leads to, and nobody can take it away from there.
        seen = {row.number for row in visible(rows)} & (found - {number})
        below += [row.target[len(top) :] for row in rows if row.number in seen]
    for path in [place + path for path in below]:
        kept = os.statvfs(path).f_flag & _SHARED
        name = os.fsencode(path)
        libc.call("mount", f"attributes of {target or path}", None, name, None, _REMOUNT | kept | add, None)


def _number_of(fd: int) -> int:
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("mnt_id:"))
