"""What the warden does inside a box that exists: bind host paths that appeared since."""

from __future__ import annotations

import errno
import os

from pytest_nsbox.kernel import files, namespaces
from pytest_nsbox.kernel.signals import signal
from pytest_nsbox.policy.errors import KernelError
from pytest_nsbox.warden.late import is_gone
from pytest_nsbox.warden.points import make_mount_point

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pytest_nsbox.warden.box import Box
    from pytest_nsbox.warden.late import Late
    from pytest_nsbox.warden.session import Session


def bind_late(session: Session, box: Box, late: Late) -> None:
    """Bind the host paths `late` read-write into `box`. Raises KernelError; those before the one that failed stay
    bound. What was bound when the root was built, or went meanwhile, is left out.
    """
    doors = session.doors
    plan = box.tree.plan
    clones: list[tuple[str, int, bool]] = []
    home = doors.open_namespace("self", "mnt")
    here = files.open_directory(".")
    try:
        _clone_all(session, box, late, clones)
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
                    except KernelError as error:
                        # Its name went between the two.
                        if error.errno != errno.ENOENT:
                            raise
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


def _clone_all(session: Session, box: Box, late: Late, clones: list[tuple[str, int, bool]]) -> None:
    plan = box.tree.plan
    for path, place in late.items():
        if box.tree.bound.get(path) == place:
            continue
        directory = os.path.isdir(path)
        try:
            clone = session.host.clone_for_box(path, shifted=plan.shifted, readonly=False, user=plan.user)
        except (KernelError, FileNotFoundError):
            if not is_gone(path, place):
                raise
            continue
        clones.append((path, clone, directory))


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
