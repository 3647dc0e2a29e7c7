"""A file by which processes of one user share an amount of memory and CPUs. Sources: fcntl(2), "Record locks".

Byte 0 is the turnstile: who wants more holds its lock until there is enough for it, so that nobody is passed by. From
`_FIRST` on there is a slot for each process, of which it holds the lock for as long as it lives, and which says what it
claims. Record locks belong to a process: a fork has none of them, and the kernel ends them with it, also by SIGKILL.

The last one to leave removes the file.
"""

from __future__ import annotations

import errno
import fcntl
import stat
import struct

from pytest_nsbox.policy.errors import KernelError
from pytest_nsbox.real import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_SLOT = struct.Struct("=QQ")  # bytes, millionths of a CPU
_FIRST, _MOST = 64, 1024
_MILLION = 1_000_000
_EXCLUSIVE, _AT_ONCE, _NONE = fcntl.LOCK_EX, fcntl.LOCK_NB, fcntl.LOCK_UN


class _Door:
    """Out of reach of pyfakefs, which replaces modules and functions."""

    lock = staticmethod(fcntl.lockf)


# Only this module would still hold what pyfakefs looks for.
del fcntl


class Claims:
    """This process's place in the file `path`, which is made if it is not there. Raises KernelError."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1
        self._slot = -1
        try:
            while self._fd < 0:
                self._fd = self._open()
        except OSError as error:
            self.close_in_child()
            raise KernelError("open", path, error.errno or 0) from None

    def _open(self) -> int:
        """Return a descriptor of the file, of which a slot is taken, or -1 if it was removed meanwhile."""
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            found = os.fstat(fd)
            # In a directory where everybody may write, somebody else may have been there first.
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
                raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
            _Door.lock(fd, _EXCLUSIVE, 1, 0)
            if self._is_there(found):
                self._slot = next(number for number in range(_MOST) if _try_lock(fd, _place(number), 1))
                # Of somebody who was killed.
                os.pwrite(fd, bytes(_SLOT.size), _place(self._slot))
                _Door.lock(fd, _NONE, 1, 0)
                return fd
        except StopIteration:
            os.close(fd)
            raise OSError(errno.ENOLCK, "") from None
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        return -1

    def _is_there(self, found: os.stat_result) -> bool:
        try:
            now = os.stat(self._path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return (now.st_dev, now.st_ino) == (found.st_dev, found.st_ino)

    def claim(self, mem: int, cpu: float, budget: tuple[float, float], wait: Callable[[], object] | None) -> bool:
        """Have this process's claim be `mem` bytes and `cpu` CPUs, if with it all claims are within `budget`.

        wait  called, for a while each time, until there is enough; None: False is returned then
        """
        if wait is None:
            if not _try_lock(self._fd, 0, 1):
                return False
        else:
            _Door.lock(self._fd, _EXCLUSIVE, 1, 0)
        try:
            wanted = mem, round(cpu * _MILLION)
            # An infinite one stays so.
            most = budget[0], budget[1] * _MILLION
            while not self._fits(wanted, most):
                if wait is None:
                    return False
                wait()
            self.set(mem, cpu)
            return True
        finally:
            _Door.lock(self._fd, _NONE, 1, 0)

    def set(self, mem: int, cpu: float) -> None:
        """Have this process's claim be that, whatever others claim."""
        os.pwrite(self._fd, _SLOT.pack(mem, round(cpu * _MILLION)), _place(self._slot))

    def _fits(self, wanted: tuple[int, int], most: tuple[float, float]) -> bool:
        others = self._others()
        for number, claimed in others.items():
            if any(claimed) and self._sum(others, wanted, most):
                break
            # Only now, since it takes a call for each: who was killed claims nothing any more.
            if any(claimed) and _try_lock(self._fd, _place(number), 1):
                os.pwrite(self._fd, bytes(_SLOT.size), _place(number))
                _Door.lock(self._fd, _NONE, 1, _place(number))
                others[number] = (0, 0)
        return self._sum(others, wanted, most)

    def _others(self) -> dict[int, tuple[int, int]]:
        text = os.pread(self._fd, _SLOT.size * _MOST, _FIRST)
        whole = text[: len(text) - len(text) % _SLOT.size]
        found = dict(enumerate(_SLOT.iter_unpack(whole)))
        found.pop(self._slot, None)
        return {number: (mem, cpu) for number, (mem, cpu) in found.items()}

    @staticmethod
    def _sum(others: dict[int, tuple[int, int]], wanted: tuple[int, int], most: tuple[float, float]) -> bool:
        return all(
            not wanted[part] or wanted[part] + sum(claimed[part] for claimed in others.values()) <= most[part]
            for part in (0, 1)
        )

    def close(self) -> None:
        """Leave; the last one removes the file."""
        if self._fd < 0:
            return
        self.set(0, 0)
        # Who holds the turnstile is not the last; it will be gone after us.
        if _try_lock(self._fd, 0, 1) and _try_lock(self._fd, _FIRST, _SLOT.size * _MOST):
            os.unlink(self._path)
        self.close_in_child()

    def close_in_child(self) -> None:
        """In a fork: let go of the descriptor; the claim stays that of the process that made it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _place(number: int) -> int:
    return _FIRST + number * _SLOT.size


def _try_lock(fd: int, start: int, length: int) -> bool:
    try:
        _Door.lock(fd, _EXCLUSIVE | _AT_ONCE, length, start)
    except (BlockingIOError, PermissionError):
        return False
    return True
