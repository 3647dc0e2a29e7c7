"""What the warden does inside a box that exists: bind host paths that appeared since, and copy artifacts out of it."""

from __future__ import annotations

import errno
import os
import stat

from pytest_nsbox.kernel import files, namespaces
from pytest_nsbox.policy.errors import KernelError
from pytest_nsbox.warden.tree import make_mount_point

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_nsbox.warden.box import Box
    from pytest_nsbox.warden.session import Session


def bind_late(session: Session, box: Box, paths: Iterable[str]) -> None:
    """Bind host `paths` read-write into `box`. Raises KernelError; those before the one that failed stay bound."""
    doors = session.doors
    plan = box.tree.plan
    clones: list[tuple[str, int, bool]] = []
    home = doors.open_namespace("self", "mnt")
    here = files.open_directory(".")
    try:
        for path in paths:
            directory = os.path.isdir(path)
            clones.append(
                (
                    path,
                    session.host.clone_for_box(path, shifted=plan.shifted, readonly=False, user=plan.user),
                    directory,
                )
            )
        doors.setns(box.pidfd, namespaces.NEWNS)
        try:
            root = files.open_directory("/")
            try:
                session.act_as(shifted=plan.shifted)
                for path, clone, directory in clones:
                    box.tree.made |= make_mount_point(doors, root, path, directory=directory)
                    point = doors.open_in(root, path)
                    try:
                        doors.attach(clone, "", point)
                    finally:
                        os.close(point)
            finally:
                os.close(root)
                session.act_as(shifted=False)
        finally:
            namespaces.setns(home, namespaces.NEWNS)
            os.fchdir(here)
    finally:
        for fd in (home, here, *(clone for _, clone, _ in clones)):
            os.close(fd)


def copy_artifacts(box: Box, globs: tuple[str, ...], workdir: str, destination: str) -> tuple[list[str], list[str]]:
    """Copy regular files that match `globs` in the box to the host's directory `destination`; return their paths in the
    box, and what went wrong.

    For a process of its own: it enters the box's mount namespace for good, so that no path and no symlink leads out of
    the box. A relative glob starts at `workdir`, and its matches keep their path from there; those of an absolute one
    keep it from "/".
    """
    # Imported before the box is entered, since then Python's own files are the box's.
    import glob

    os.makedirs(destination, mode=0o755, exist_ok=True)
    target = files.open_directory(destination)
    namespaces.setns(box.pidfd, namespaces.NEWNS)
    copied: list[str] = []
    problems: list[str] = []
    for pattern in globs:
        absolute = pattern.startswith("/")
        start = "/" if absolute else workdir
        for match in glob.iglob(pattern.lstrip("/"), root_dir=start, recursive=True):
            _copy(os.path.normpath(os.path.join(start, match)), os.path.normpath(match), target, copied, problems)
    return copied, problems


def _copy(source: str, name: str, target: int, copied: list[str], problems: list[str]) -> None:
    try:
        at = os.stat(source)
        if name.startswith("..") or source in copied:
            return
        if stat.S_ISDIR(at.st_mode):
            for entry in sorted(os.listdir(source)):
                # A symlink to a directory could lead round in circles.
                if not os.path.islink(f"{source}/{entry}") or not os.path.isdir(f"{source}/{entry}"):
                    _copy(f"{source}/{entry}", f"{name}/{entry}", target, copied, problems)
        elif stat.S_ISREG(at.st_mode):
            _copy_file(source, name, target, stat.S_IMODE(at.st_mode) & 0o777)
            copied.append(source)
    except (OSError, KernelError) as error:
        problems.append(f"{source}: {error}")


def _copy_file(source: str, name: str, target: int, mode: int) -> None:
    *parents, base = name.split("/")
    directory = os.dup(target)
    try:
        for parent in parents:
            if parent not in os.listdir(directory):
                os.mkdir(parent, 0o755, dir_fd=directory)
            below = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            os.close(directory)
            directory = below
        # NONBLOCK: it may have become a FIFO since we looked.
        with open(os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as reader:
            if not stat.S_ISREG(os.fstat(reader.fileno()).st_mode):
                raise OSError(errno.EINVAL, "not a regular file any more")
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(os.open(base, flags, mode | 0o600, dir_fd=directory), "wb") as writer:
                while block := reader.read(1 << 20):
                    writer.write(block)
    finally:
        os.close(directory)
