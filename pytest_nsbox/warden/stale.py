"""Unix sockets that nobody has open any more: files that a server left in a temporary directory when it ended.

To a test they say that there was an earlier run. Without boxes the first test that uses such a path removes the file;
each box would find it there again, so boxes begin without.
"""

from __future__ import annotations

import errno
import os
import stat
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_DGRAM, socket

from pytest_nsbox.kernel import files
from pytest_nsbox.policy.errors import KernelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_nsbox.warden.doors import Doors

# It went meanwhile, or is another user's.
_AS_ON_THE_HOST = (errno.ENOENT, errno.ENOTDIR, errno.EPERM, errno.EACCES)


def find_stale_sockets(directories: Iterable[str]) -> list[str]:
    """Return the paths of those that lie in `directories` themselves, not below."""
    places = sorted({os.path.realpath(directory) for directory in directories})
    return [path for directory in places for path in _sockets(directory) if _is_stale(path)]


def _sockets(directory: str) -> list[str]:
    try:
        with os.scandir(directory) as entries:
            # What is of none of these kinds is rare, and asked for its own.
            odd = [e.path for e in entries if not (e.is_symlink() or e.is_file() or e.is_dir())]
        return sorted(path for path in odd if stat.S_ISSOCK(os.lstat(path).st_mode))
    except OSError:
        # It is not there, or not ours to read, or a file of it went while we looked.
        return []


def _is_stale(path: str) -> bool:
    """Ask the kernel without disturbing whoever has it: one that takes datagrams notices nothing, and a listening one
    is refused (EPROTOTYPE) before it hears of it. Source: unix(7).
    """
    asking = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC)
    try:
        asking.connect(path)
    except OSError as error:
        return error.errno == errno.ECONNREFUSED
    finally:
        asking.close()
    return False


def hide(doors: Doors, overlay: int, names: Iterable[str]) -> list[str]:
    """Remove the files `names` in the overlay that is mounted at the descriptor; return those that are gone."""
    hidden = []
    for name in names:
        above, last = os.path.split(name)
        try:
            # Whatever became a link since then, nothing outside of the overlay is reached.
            fd = doors.open_in(overlay, f"/{above}")
            try:
                files.attempt("unlink", name, os.unlink, last, dir_fd=fd)
            finally:
                os.close(fd)
        except KernelError as error:
            if error.errno not in _AS_ON_THE_HOST:
                raise
        else:
            hidden.append(name)
    return hidden
