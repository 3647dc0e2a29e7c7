"""Mounts of the host whose directory or file was deleted since it was mounted: an editor replaced a file that an engine
had bound into its container, a server whose socket is bound somewhere ended.

On the host they go on showing it, but the kernel gives no clone of them a place (move_mount(2): ENOENT).
"""

from __future__ import annotations

import os
import stat

from pytest_nsbox.kernel import files


def is_deleted(path: str) -> bool:
    """Say if `path` leads to such a mount."""
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        # Source: proc_pid_fd(5).
        return os.readlink(f"/proc/self/fd/{fd}").endswith(" (deleted)")
    finally:
        os.close(fd)


def copy(source: str, to: str, *, owned: bool) -> bool:
    """Make `to` like what the mount at `source` shows; say if that can be done: nobody can name a socket or a pipe
    again.

    owned  give it the owner as well
    """
    at = os.stat(source)
    if stat.S_ISDIR(at.st_mode):
        files.make_directory(to)
    elif stat.S_ISREG(at.st_mode):
        files.attempt("copy", source, _copy_data, source, to)
    else:
        return False
    if owned:
        files.attempt("chown", to, os.chown, to, at.st_uid, at.st_gid)
    files.attempt("chmod", to, os.chmod, to, stat.S_IMODE(at.st_mode))
    return True


def _copy_data(source: str, to: str) -> None:
    with open(source, "rb") as reading, open(to, "wb") as writing:
        files.copy_data(reading.fileno(), writing.fileno())
