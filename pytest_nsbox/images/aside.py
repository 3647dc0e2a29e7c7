"""Directories that are worked in aside: removed at the end, or by a later process if their maker was killed.

Each is flocked by its maker. Removing works with descriptors and flattens as it goes: what an archive unpacked may be
deeper than any path or stack.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextlib.contextmanager
def directory(parent: str) -> Iterator[str]:
    """Make a directory in `parent`; unless it was renamed, it is removed at the end."""
    path = f"{parent}/{os.getpid()}-{os.urandom(6).hex()}"
    os.mkdir(path, 0o700)
    fd = os.open(path, _OPEN)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield path
    finally:
        if os.path.isdir(path):
            remove(parent, os.path.basename(path))
        os.close(fd)


def sweep(parent: str) -> None:
    """Remove what lies in `parent` and has no living maker."""
    for name in os.listdir(parent):
        try:
            fd = os.open(f"{parent}/{name}", _OPEN)
        except FileNotFoundError:
            continue
        except NotADirectoryError:
            # A file that was about to be renamed; its maker's id is in front.
            if not os.path.exists(f"/proc/{name.partition('-')[0]}"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(f"{parent}/{name}")
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(parent, name)
        except BlockingIOError:
            continue
        finally:
            os.close(fd)


def remove(parent: str, name: str) -> None:
    """Remove the directory `name` of `parent`, whatever is in it."""
    top = os.open(parent, _OPEN)
    try:
        waiting, count = [name], 0
        while waiting:
            here = waiting.pop()
            try:
                fd = os.open(here, _OPEN, dir_fd=top)
            except FileNotFoundError:
                continue
            try:
                for entry in os.listdir(fd):
                    if stat.S_ISDIR(os.lstat(entry, dir_fd=fd).st_mode):
                        count += 1
                        moved = f"{name}-{count}"
                        os.rename(entry, moved, src_dir_fd=fd, dst_dir_fd=top)
                        waiting.append(moved)
                    else:
                        os.unlink(entry, dir_fd=fd)
            finally:
                os.close(fd)
            os.rmdir(here, dir_fd=top)
    finally:
        os.close(top)
