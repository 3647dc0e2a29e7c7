"""Directories that are worked in aside: removed at the end, or by a later process if their maker was killed.

Each is flocked by its maker.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING

from pytest_nsbox.kernel import files

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
        files.remove_tree(path)
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
            files.remove_tree(f"{parent}/{name}")
        except BlockingIOError:
            continue
        finally:
            os.close(fd)
