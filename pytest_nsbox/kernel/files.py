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


def remove_tree(path: str) -> None:
    """Remove `path` and all below it; what is gone already is no error. Everything is tried; the first error is raised
    at the end.
    """
    first: KernelError | None = None
    try:
        with os.scandir(path) as entries:
            found = list(entries)
    except FileNotFoundError:
        return
    except OSError as error:
        raise KernelError("remove", path, error.errno or errno.EIO) from None
    for entry in found:
        try:
            if entry.is_dir(follow_symlinks=False):
                remove_tree(entry.path)
            else:
                attempt("remove", entry.path, os.unlink, entry.path)
        except KernelError as error:
            first = first or error
    try:
        os.rmdir(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise first or KernelError("remove", path, error.errno or errno.EIO) from None
