"""Files, made by path or relative to a directory's descriptor; failures are KernelErrors that name the path."""

from __future__ import annotations

import errno
import os
import stat

from pytest_nsbox.policy.errors import KernelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def attempt(call: str, target: str, function: Callable[..., T], *arguments: object, **options: object) -> T:
    """Return what `function` returns; an OSError becomes a KernelError of `call` and `target`."""
    try:
        return function(*arguments, **options)
    except OSError as error:
        raise KernelError(call, target, error.errno or errno.EIO) from None


def make_directory(path: str, mode: int = 0o755, at: int | None = None) -> None:
    """Make a directory of `mode`, less the umask."""
    attempt("mkdir", path, os.mkdir, path, mode, dir_fd=at)


def make_file(path: str, at: int | None = None) -> None:
    """Make an empty file."""
    os.close(
        attempt("create", path, os.open, path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=at)
    )


def make_device(path: str, major: int, minor: int, at: int | None = None) -> None:
    """Make a character device that everyone may read and write, as far as the umask lets them."""
    attempt("mknod", path, os.mknod, path, stat.S_IFCHR | 0o666, os.makedev(major, minor), dir_fd=at)


def make_link(path: str, to: str, at: int | None = None) -> None:
    """Make a symbolic link at `path`."""
    attempt("symlink", path, os.symlink, to, path, dir_fd=at)


def open_directory(path: str, at: int | None = None) -> int:
    """Open a directory for use as a starting point."""
    return attempt("open", path, os.open, path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=at)


def copy_data(source: int, to: int) -> None:
    """Copy what is in a file to an empty one, both by descriptor, holes as holes: one of a terabyte may hold nothing.
    Raises OSError.
    """
    size = os.fstat(source).st_size
    os.ftruncate(to, size)
    end = 0
    while end < size:
        try:
            at = os.lseek(source, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole is left
                return
            raise
        end = min(os.lseek(source, at, os.SEEK_HOLE), size)
        os.lseek(source, at, os.SEEK_SET)
        os.lseek(to, at, os.SEEK_SET)
        while at < end:
            sent = os.sendfile(to, source, None, end - at)
            if not sent:  # it has become shorter
                return
            at += sent


class Descent:
    """A way down a tree of directories and up again, with one descriptor: a tree can be deeper than a path is long and
    than there are descriptors.

    fd     the directory that it has come to
    names  its path from the top
    """

    def __init__(self, top: str) -> None:
        """Begin at the directory `top`. Raises OSError, as all that goes somewhere."""
        self.top = top
        self.names: list[str] = []
        # Device and inode of each directory above.
        self._above: list[tuple[int, int]] = []
        self.fd = os.open(top, _OPEN)

    def enter(self, name: str) -> None:
        """Go to the directory `name` of this one."""
        at = os.fstat(self.fd)
        self._move(name)
        self.names.append(name)
        self._above.append((at.st_dev, at.st_ino))

    def leave(self) -> str:
        """Go up again; return the name of the directory that was left."""
        name, above = self.names.pop(), self._above.pop()
        self._move("..")
        at = os.fstat(self.fd)
        if (at.st_dev, at.st_ino) != above:
            # Somebody moved where we were.
            self._move(self.top)
            for each in self.names:
                self._move(each)
        return name

    def _move(self, name: str) -> None:
        fd = os.open(name, _OPEN, dir_fd=self.fd)
        os.close(self.fd)
        self.fd = fd

    def close(self) -> None:
        """Let go of the directory."""
        os.close(self.fd)


def remove_tree(path: str) -> None:
    """Remove the directory `path` and all below it; what is gone already is no error. Everything is tried; the first
    error is raised at the end.
    """
    try:
        removal = _Removal(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise KernelError("remove", path, error.errno or errno.EIO) from None
    try:
        removal.run()
    except OSError as error:
        removal.failed("", error)
    finally:
        removal.close()
    try:
        os.rmdir(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        removal.failed("", error)
    if removal.first is not None:
        raise removal.first


class _Removal(Descent):
    first: KernelError | None = None

    def run(self) -> None:
        """Remove all that is below."""
        left = [self._remove_most()]
        while left:
            if left[-1]:
                name = left[-1].pop()
                try:
                    self.enter(name)
                except OSError as error:
                    self.failed(name, error)
                    continue
                left.append(self._remove_most())
                continue
            left.pop()
            if left:
                self._remove(os.rmdir, self.leave())

    def _remove_most(self) -> list[str]:
        """Remove what is here and no directory that has something in it; return those."""
        with os.scandir(self.fd) as scanned:
            entries = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in scanned]
        full = []
        for name, is_directory in entries:
            if not is_directory:
                self._remove(os.unlink, name)
            elif not self._remove(os.rmdir, name, unless=errno.ENOTEMPTY):
                full.append(name)
        return full

    def _remove(self, how: Callable[..., None], name: str, unless: int = 0) -> bool:
        """Remove `name`; False if that is refused with `unless`."""
        try:
            how(name, dir_fd=self.fd)
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno == unless:
                return False
            self.failed(name, error)
        return True

    def failed(self, name: str, error: OSError) -> None:
        path = "/".join((self.top, *self.names, name)).rstrip("/")
        self.first = self.first or KernelError("remove", path, error.errno or errno.EIO)
