"""Mounts, by descriptors. Source: fsopen(2), fsconfig(2), fsmount(2), open_tree(2), move_mount(2), mount_setattr(2),
openat2(2), pivot_root(2).

A mount is made or cloned detached, gets its attributes, and only then a place: nobody can see it half-made.
"""

from __future__ import annotations

import errno
import os
import struct

from pytest_nsbox.kernel import libc
from pytest_nsbox.policy.errors import KernelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# Attributes of a mount.
RDONLY = 0x1
NOSUID = 0x2
NODEV = 0x4
NOEXEC = 0x8
_IDMAP = 0x00100000

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000

_OPEN_TREE_CLONE = 0x1
_OPEN_TREE_CLOEXEC = os.O_CLOEXEC
FSOPEN_CLOEXEC = 0x1
FSMOUNT_CLOEXEC = 0x1
_FSCONFIG_SET_FLAG = 0
_FSCONFIG_SET_STRING = 1
_FSCONFIG_CMD_CREATE = 6
_FSCONFIG_CMD_RECONFIGURE = 7
_FSPICK_CLOEXEC = 0x1
_FSPICK_EMPTY_PATH = 0x8
MOVE_MOUNT_F_EMPTY_PATH = 0x04
_MOVE_MOUNT_T_EMPTY_PATH = 0x40
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_IN_ROOT = 0x10

MNT_DETACH = 0x2
_MS_REC = 0x4000
_MS_PRIVATE = 1 << 18
_MS_UNBINDABLE = 1 << 17


def new_mount(
    fstype: str, options: Sequence[tuple[str, str | None]] = (), attributes: int = 0, target: str = ""
) -> int:
    """Make a file system of type `fstype` and return its detached mount as a descriptor.

    options  (key, value); value None for a flag
    target   where it will go: for the error's text only, to which the kernel's own words are added
    """
    call = f"mount {fstype}"
    fs = _open_filesystem(call, fstype, target)
    try:
        try:
            for words in configurations(options):
                libc.syscall(call, target, libc.SYS_FSCONFIG, fs, *words)
            return libc.syscall(call, target, libc.SYS_FSMOUNT, fs, FSMOUNT_CLOEXEC, attributes)
        except KernelError as error:
            raise KernelError(call, _with_reason(fs, target), error.errno) from None
    finally:
        os.close(fs)


def configurations(options: Sequence[tuple[str, str | None]]) -> list[tuple[int | bytes, ...]]:
    """Return what fsconfig(2) is told, call by call, to make a file system with `options`."""
    told: list[tuple[int | bytes, ...]] = []
    for key, value in options:
        if value is None:
            told.append((_FSCONFIG_SET_FLAG, key.encode()))
        else:
            told.append((_FSCONFIG_SET_STRING, key.encode(), os.fsencode(value)))
    return [*told, (_FSCONFIG_CMD_CREATE,)]


def _open_filesystem(call: str, fstype: str, target: str) -> int:
    name = fstype.encode()
    return libc.syscall(call, target, libc.SYS_FSOPEN, name, FSOPEN_CLOEXEC)


def _with_reason(fs: int, target: str) -> str:
    """Add what the kernel says about the failure; each read gives one message ("e ..." is an error)."""
    reasons = []
    for _ in range(8):
        try:
            reasons.append(os.read(fs, 4096).decode(errors="replace").strip().removeprefix("e "))
        except OSError:
            break
    return f"{target} ({'; '.join(reasons)})" if reasons else target


def clone_tree(path: str, *, recursive: bool = False, at: int = AT_FDCWD) -> int:
    """Clone the mount that `path` lies on, rooted at `path` (recursive: with the mounts below it); return it detached,
    as a descriptor.

    An empty path with `at` clones what the descriptor `at` is open on.
    """
    name = os.fsencode(path)
    flags = clone_flags(recursive=recursive) | (0 if path else AT_EMPTY_PATH)
    return libc.syscall("open_tree", path or _name_of(at), libc.SYS_OPEN_TREE, at, name, flags)


def clone_flags(*, recursive: bool) -> int:
    """Return the flags of open_tree(2) for a clone."""
    return _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | (_AT_RECURSIVE if recursive else 0)


def attach(mount: int, target: str, at: int = AT_FDCWD) -> None:
    """Give the detached `mount` its place: at path `target`, or (target empty) on what `at` is open on."""
    name = os.fsencode(target)
    flags = MOVE_MOUNT_F_EMPTY_PATH | (0 if target else _MOVE_MOUNT_T_EMPTY_PATH)
    libc.syscall("move_mount", target or _name_of(at), libc.SYS_MOVE_MOUNT, mount, b"", at, name, flags)


def set_attributes(
    mount: int, add: int = 0, remove: int = 0, *, idmap: int | None = None, recursive: bool = False, target: str = ""
) -> None:
    """Change attributes of `mount` (a descriptor of its root; before Linux 5.12 it may be of a clone afterwards).

    idmap  descriptor of a user namespace: ids of files are shown through its map; only on a mount that was never
           attached
    """
    if idmap is not None:
        add |= _IDMAP
    attributes = attributes_of(add, remove, idmap or 0)
    flags = AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    call = "mount_setattr" if idmap is None else "mount_setattr idmap"
    words = (mount, b"", flags, attributes, len(attributes))
    try:
        libc.syscall(call, target or _name_of(mount), libc.SYS_MOUNT_SETATTR, *words)
    except KernelError as error:
        if error.errno != errno.ENOSYS or idmap is not None or remove:
            raise
        from pytest_nsbox.kernel import remount

        remount.set_attributes(mount, add, recursive=recursive, target=target)


def attributes_of(add: int, remove: int = 0, idmap: int = 0) -> bytes:
    """Return a struct mount_attr: attr_set, attr_clr, propagation, userns_fd."""
    return struct.pack("=4Q", add, remove, 0, idmap)


def make_private(path: str) -> None:
    """Keep mounts and unmounts at and below `path` to our mount namespace, and those of others out of it."""
    libc.call("mount", f"private {path}", None, os.fsencode(path), None, _MS_REC | _MS_PRIVATE, None)


def make_unbindable(path: str) -> None:
    """Keep the mount at `path`, and what is mounted below it, out of every recursive clone of what lies above."""
    libc.call("mount", f"unbindable {path}", None, os.fsencode(path), None, _MS_UNBINDABLE, None)


def detach(path: str) -> None:
    """Unmount all that is mounted on and below `path`, at once for lookups, for good when its last user is gone."""
    libc.call("umount2", path, os.fsencode(path), MNT_DETACH)


def forget_lookups(mount: int, target: str = "") -> None:
    """Make the file system of `mount` forget every name that it looked up and nobody uses: a reconfiguration that
    changes nothing does that.

    So an overlay whose lower files changed under it shows them as they are.
    """
    fs = libc.syscall("fspick", target, libc.SYS_FSPICK, mount, b"", _FSPICK_CLOEXEC | _FSPICK_EMPTY_PATH)
    try:
        libc.syscall("fsconfig", target, libc.SYS_FSCONFIG, fs, _FSCONFIG_CMD_RECONFIGURE)
    finally:
        os.close(fs)


def pivot_here() -> None:
    """Make the mount on which our working directory lies the root of our mount namespace, and let go of the old root.

    pivot_root(".", ".") stacks the old root on the new one, so no directory for it is needed (pivot_root(2), NOTES).
    """
    libc.call("pivot_root", ".", b".", b".")
    libc.call("umount2", "old root", b".", MNT_DETACH)


def cover_root() -> None:
    """Mount a copy of all that we see on our root and make that our root, and let go of our working directory.

    pivot_root(2) cannot put the first mount of a mount namespace aside, which is the root that somebody sees whose
    machine runs from its initramfs.
    """
    copy = clone_tree("/", recursive=True)
    try:
        attach(copy, "/")
        libc.call("fchdir", "/", copy)
        libc.call("chroot", "/", b".")
    finally:
        os.close(copy)


def open_in(root: int, path: str, flags: int = os.O_PATH) -> int:
    """Open `path` as a process with root `root` would: neither ".." nor an absolute symlink leads out of it."""
    name = os.fsencode(path.lstrip("/") or ".")
    # struct open_how: flags, mode, resolve
    how = struct.pack("=3Q", flags | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    return libc.syscall("openat2", path, libc.SYS_OPENAT2, root, name, how, len(how))


def read_mounts(pid: int | str = "self") -> str:
    """Return the text of /proc/PID/mountinfo."""
    with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def _name_of(fd: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return str(fd)
