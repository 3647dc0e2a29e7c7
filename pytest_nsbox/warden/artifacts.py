"""Copying files out of a box: one process finds and opens them with the rights that root of the box has, the other one
writes copies on the host.

The finder opens, so a link in the box leads where it leads in the box, and what the kernel keeps from the box (much of
/proc and /sys) is kept from the copy. The descriptor that comes over is all that the writer touches of the box.
"""

from __future__ import annotations

import array
import errno
import marshal
import os
import stat
from _socket import (
    AF_UNIX,
    CMSG_SPACE,
    MSG_CMSG_CLOEXEC,
    SCM_RIGHTS,
    SOCK_CLOEXEC,
    SOCK_SEQPACKET,
    SOL_SOCKET,
    socketpair,
)

from pytest_nsbox.kernel import files, namespaces, process
from pytest_nsbox.policy.errors import KernelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket

    from pytest_nsbox.warden.box import Box

_MESSAGE = 1 << 16
_BLOCK = 1 << 20


def copy_artifacts(box: Box, globs: tuple[str, ...], workdir: str, destination: str) -> tuple[list[str], list[str]]:
    """Copy regular files that match `globs` in the box to the host's directory `destination`; return their paths in the
    box, and what went wrong.

    For a process of its own. A relative glob starts at `workdir`, and its matches keep their path from there; those of
    an absolute one keep it from "/".
    """
    os.umask(0o022)
    os.makedirs(destination, mode=0o755, exist_ok=True)
    target = files.open_directory(destination)
    ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            _Finder(theirs).find(box, globs, workdir)
        finally:
            os._exit(0)
    theirs.close()
    copied: list[str] = []
    problems: list[str] = []
    while (found := _receive(ours)) is not None:
        source, name, problem, fd = found
        if fd < 0:
            problems.append(f"{source}: {problem}")
            continue
        try:
            _copy(fd, name, target)
            copied.append(source)
        except OSError as error:
            problems.append(f"{source}: {error}")
        finally:
            os.close(fd)
    os.waitpid(pid, 0)
    return copied, problems


def _receive(sock: socket) -> tuple[str, str, str, int] | None:
    """Return path in the box, path of the copy, what went wrong, and a descriptor (else -1); None at the end."""
    data, ancillary, _, _ = sock.recvmsg(_MESSAGE, CMSG_SPACE(4), MSG_CMSG_CLOEXEC)
    if not data:
        return None
    source, name, problem = marshal.loads(data)
    fds = array.array("i")
    for level, kind, content in ancillary:
        if level == SOL_SOCKET and kind == SCM_RIGHTS:
            fds.frombytes(content)
    return source, name, problem, fds[0] if fds else -1


class _Finder:
    """In a process of its own, inside the box."""

    def __init__(self, sock: socket) -> None:
        self._sock = sock
        self._seen: set[str] = set()

    def find(self, box: Box, globs: tuple[str, ...], workdir: str) -> None:
        """Send what matches."""
        # Imported before the box is entered, since then Python's own files are the box's.
        import glob

        try:
            namespaces.setns(box.pidfd, box.namespaces & (namespaces.NEWUSER | namespaces.NEWNS))
            if box.namespaces & namespaces.NEWUSER:
                process.become(0, 0)
        except KernelError as error:
            self._tell("artifacts", error)
            return
        for pattern in globs:
            start = "/" if pattern.startswith("/") else workdir
            for match in glob.iglob(pattern.lstrip("/"), root_dir=start, recursive=True):
                try:
                    self._offer(os.path.normpath(os.path.join(start, match)), os.path.normpath(match))
                except RecursionError as error:
                    self._tell(match, error)

    def _tell(self, source: str, error: object) -> None:
        self._sock.send(marshal.dumps((source[:4096], "", str(error)[:4096])))

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
            message = marshal.dumps((source, name, ""))
            self._sock.sendmsg([message], [(SOL_SOCKET, SCM_RIGHTS, array.array("i", [fd]))])
        finally:
            os.close(fd)


def _copy(source: int, name: str, target: int) -> None:
    """Copy what `source` is open on to `name` below the directory `target`."""
    *parents, base = name.split("/")
    directory = os.dup(target)
    try:
        for parent in parents:
            if parent not in os.listdir(directory):
                os.mkdir(parent, 0o755, dir_fd=directory)
            below = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            os.close(directory)
            directory = below
        at = os.fstat(source)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        writer = os.open(base, flags, at.st_mode & 0o777 | 0o600, dir_fd=directory)
        try:
            _copy_data(source, writer, at.st_size)
        finally:
            os.close(writer)
    finally:
        os.close(directory)


def _copy_data(source: int, writer: int, size: int) -> None:
    """Copy `size` bytes, holes as holes: a file of a terabyte may hold nothing."""
    os.ftruncate(writer, size)
    end = 0
    while end < size:
        try:
            start = os.lseek(source, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        end = min(os.lseek(source, start, os.SEEK_HOLE), size)
        os.lseek(source, start, os.SEEK_SET)
        os.lseek(writer, start, os.SEEK_SET)
        while start < end and (block := os.read(source, min(_BLOCK, end - start))):
            view = memoryview(block)
            while view:
                view = view[os.write(writer, view) :]
            start += len(block)
        if start < end:
            # It has become shorter.
            return
