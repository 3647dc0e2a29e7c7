"""What of the host may come and go while boxes are made ahead, and must be bound into each: listening unix sockets, and
shared paths.

A socket of the host cannot be connected to through an overlay; a shared path is the host's own. Both are named by the
device and inode that they had: whoever sees another one now knows that the box in hand is out of date.
"""

from __future__ import annotations

import stat

from pytest_nsbox.policy.hostmounts import is_within
from pytest_nsbox.real import os, read_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    Late = dict[str, tuple[int, int]]

# The box's own, never the host's.
_OWN = ("/proc", "/sys", "/dev")


def find_late(shared: Iterable[str], *, sockets: bool) -> Late:
    """Return the paths to bind, outermost first, each with its device and inode; what does not exist is left out."""
    found: Late = {}
    for path in sorted(set(shared)):
        if any(is_within(path, outer) for outer in found):
            continue
        try:
            at = os.stat(path)
        except OSError:
            continue
        found[path] = (at.st_dev, at.st_ino)
    if sockets:
        outer = tuple(found)
        for path in _socket_paths():
            if path in found or any(is_within(path, directory) for directory in outer):
                continue
            try:
                at = os.lstat(path)
            except OSError:
                continue
            if stat.S_ISSOCK(at.st_mode):
                found[path] = (at.st_dev, at.st_ino)
    return found


def is_gone(path: str, place: tuple[int, int]) -> bool:
    """Say if what `path` was the name of, a device and inode, is not there any more."""
    try:
        at = os.stat(path)
    except OSError:
        return True
    return (at.st_dev, at.st_ino) != place


def _socket_paths() -> list[str]:
    """Return the paths of /proc/net/unix that somebody listens on, or receives datagrams at. Source: proc_net(5)."""
    paths = []
    for line in _read("/proc/net/unix").split(b"\n"):
        # Num: RefCount Protocol Flags Type St Inode Path; abstract addresses begin with @ and belong to the network
        # namespace.
        _, slash, rest = line.partition(b" /")
        if not slash:
            continue
        fields = line.split(None, 7)
        if fields[3] == b"00010000" or fields[4] == b"0002":
            path = os.fsdecode(b"/" + rest)
            if not any(is_within(path, own) for own in _OWN):
                paths.append(path)
    return paths


def _read(path: str) -> bytes:
    try:
        return read_bytes(path)
    except OSError:
        return b""
