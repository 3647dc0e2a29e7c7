"""What the warden does inside a box that exists: bind host paths that appeared since."""

from __future__ import annotations

import os

from pytest_nsbox.kernel import files, namespaces
from pytest_nsbox.kernel.signals import signal
from pytest_nsbox.warden.points import make_mount_point

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


def kill_all(box: Box) -> None:
    """Kill every process of `box` but its init. Raises KernelError."""
    if box.node.views:
        box.node.kill()
        return
    # There are no cgroups to find them by.
    child = os.fork()
    if child == 0:
        try:
            namespaces.setns(box.pidfd, namespaces.NEWPID)
            inside = os.fork()
            if inside == 0:
                # All that it may signal, less itself and process 1: kill(2).
                os.kill(-1, signal.SIGKILL)
                os._exit(0)
            os.waitpid(inside, 0)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
