"""Copying files out of a box: one process finds and opens them with the rights that root of the box has, the other one
writes copies on the host.

The finder opens, so a link in the box leads where it leads in the box, and what the kernel keeps from the box (much of
/proc and /sys) is kept from the copy. The descriptor that comes over is all that the writer touches of the box.
"""

from __future__ import annotations

import contextlib
import errno
import marshal
import os
import stat
from _socket import MSG_CMSG_CLOEXEC

from pytest_nsbox.kernel import files, namespaces, process
from pytest_nsbox.kernel.line import line
from pytest_nsbox.kernel.rights import descriptors, rights, room
from pytest_nsbox.policy.errors import BoxFailed, KernelError
from pytest_nsbox.warden.changes import find_changes, in_order

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Callable, Sequence

    from pytest_nsbox.warden.box import Box
    from pytest_nsbox.warden.doors import Doors
    from pytest_nsbox.warden.messages import Release

_MESSAGE = 1 << 16


def copy_out(doors: Doors, box: Box, request: Release) -> tuple[list[str], list[str]]:
    """Copy what `request` wants of the box; return which artifacts were copied, and what went wrong.

    For a process of its own.
    """
    copied: list[str] = []
    problems: list[str] = []
    try:
        doors.die_with_parent()
        if request.globs and request.artifacts:
            copied, problems = copy_artifacts(box, request.globs, request.workdir, request.artifacts)
        if request.keep:
            problems += keep_changes(box, request.keep)
    except (KernelError, BoxFailed, OSError) as error:
        problems.append(str(error))
    return copied, problems


def copy_artifacts(box: Box, globs: tuple[str, ...], workdir: str, destination: str) -> tuple[list[str], list[str]]:
    """Copy regular files that match `globs` in the box to the host's directory `destination`; return their paths in the
    box, and what went wrong.

    For a process of its own. A relative glob starts at `workdir`, and its matches keep their path from there; those of
    an absolute one keep it from "/".
    """
    return _copy_found(box, lambda finder: finder.find(globs, workdir), destination)


def keep_changes(box: Box, destination: str) -> list[str]:
    """Copy the regular files, symlinks and directories that changed in the box's root to root/ in the host's directory
    `destination`, and write a list of all changes beside it; return what went wrong.

    For a process of its own.
    """
    changes = in_order(find_changes(box.tree))
    os.makedirs(destination, mode=0o700, exist_ok=True)
    with open(f"{destination}/changes.txt", "wb") as file:
        file.writelines(os.fsencode(f"{kind} {path}\n") for kind, path in changes)
    paths = [path for kind, path in changes if kind != "D"]
    return _copy_found(box, lambda finder: finder.offer_each(paths), f"{destination}/root")[1]


def _copy_found(box: Box, find: Callable[[_Finder], None], destination: str) -> tuple[list[str], list[str]]:
    os.umask(0o022)
    os.makedirs(destination, exist_ok=True)
    target = files.open_directory(destination)
    ours, theirs = line()
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            finder = _Finder(theirs)
            if finder.enter(box):
                find(finder)
        finally:
            os._exit(0)
    theirs.close()
    copied: list[str] = []
    problems: list[str] = []
    while (found := _receive(ours)) is not None:
        source, name, problem, link, fd = found
        if problem:
            problems.append(f"{source}: {problem}")
            continue
        try:
            _copy(fd, name, link, target)
            copied.append(source)
        except OSError as error:
            problems.append(f"{source}: {error}")
        finally:
            if fd >= 0:
                os.close(fd)
    os.waitpid(pid, 0)
    return copied, problems


def _receive(sock: socket) -> tuple[str, str, str, str, int] | None:
    """Return path in the box, path of the copy, what went wrong, where a symlink leads, and a regular file's
    descriptor (else -1); None at the end.
    """
    data, ancillary, _, _ = sock.recvmsg(_MESSAGE, room(1), MSG_CMSG_CLOEXEC)
    if not data:
        return None
    source, name, problem, link = marshal.loads(data)
    fds = descriptors(ancillary)
    return source, name, problem, link, fds[0] if fds else -1


class _Finder:
    """In a process of its own, inside the box."""

    def __init__(self, sock: socket) -> None:
        self._sock = sock
        self._seen: set[str] = set()

    def enter(self, box: Box) -> bool:
        """Become root of the box; say if that was possible."""
        # Imported before the box is entered, since then Python's own files are the box's.
        import glob  # noqa: F401

        try:
            namespaces.setns(box.pidfd, box.namespaces & (namespaces.NEWUSER | namespaces.NEWNS))
            if box.namespaces & namespaces.NEWUSER and box.tree.plan.ids is None:
                process.become(0, 0)
            process.die_with_parent()
        except KernelError as error:
            self._tell("files of the box", error)
            return False
        return True

    def offer_each(self, paths: Sequence[str]) -> None:
        """Send what is at `paths`, without what is in directories. Of other kinds of files only a list can tell."""
        for path in paths:
            try:
                at = os.lstat(path)
                if stat.S_ISREG(at.st_mode):
                    self._send(path, path[1:])
                elif stat.S_ISLNK(at.st_mode):
                    self._sock.send(marshal.dumps((path, path[1:], "", os.readlink(path))))
                elif stat.S_ISDIR(at.st_mode):
                    self._sock.send(marshal.dumps((path, f"{path[1:]}/", "", "")))
            except OSError as error:
                self._tell(path, error)

    def find(self, globs: tuple[str, ...], workdir: str) -> None:
        """Send what matches."""
        import glob

        for pattern in globs:
            start = "/" if pattern.startswith("/") else workdir
            for match in glob.iglob(pattern.lstrip("/"), root_dir=start, recursive=True):
                try:
                    self._offer(os.path.normpath(os.path.join(start, match)), os.path.normpath(match))
                except RecursionError as error:
                    self._tell(match, error)

    def _tell(self, source: str, error: object) -> None:
        self._sock.send(marshal.dumps((source[:4096], "", str(error)[:4096], "")))

    def _offer(self, source: str, name: str) -> None:
        if name.startswith("..") or source in self._seen:
            return
        self._seen.add(source)
        try:
            at = os.stat(source)
            if stat.S_ISDIR(at.st_mode):
                for entry in sorted(os.listdir(source)):
                    # A symlink to a directory could lead round in circles.
                    if not os.path.islink(f"{source}/{entry}") or not os.path.isdir(f"{source}/{entry}"):
                        self._offer(f"{source}/{entry}", f"{name}/{entry}")
            elif stat.S_ISREG(at.st_mode):
                self._send(source, name)
        except OSError as error:
            self._tell(source, error)

    def _send(self, source: str, name: str) -> None:
        # NONBLOCK: it may have become a FIFO since we looked.
        fd = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(errno.EINVAL, "not a regular file any more")
            # File systems without blocks are the kernel's own: what they tell is no file, and need not have an end.
            if os.fstatvfs(fd).f_blocks == 0:
                raise OSError(errno.EINVAL, "the kernel's, and not a file on a disk")
            message = marshal.dumps((source, name, "", ""))
            self._sock.sendmsg([message], rights([fd]))
        finally:
            os.close(fd)


def _copy(source: int, name: str, link: str, target: int) -> None:
    """Copy what `source` is open on to `name` below the directory `target`; make a symlink if there is a `link`, and
    only directories if the name ends with a slash.
    """
    *parents, base = name.split("/")
    directory = os.dup(target)
    try:
        for parent in parents:
            with contextlib.suppress(FileExistsError):
                os.mkdir(parent, 0o755, dir_fd=directory)
            below = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            os.close(directory)
            directory = below
        if not base:
            return
        if link:
            os.symlink(link, base, dir_fd=directory)
            return
        at = os.fstat(source)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        writer = os.open(base, flags, at.st_mode & 0o777 | 0o600, dir_fd=directory)
        try:
            files.copy_data(source, writer)
        finally:
            os.close(writer)
    finally:
        os.close(directory)
