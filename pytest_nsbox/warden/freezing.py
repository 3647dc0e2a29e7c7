"""Pause and resume. Source: Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst, cgroup-v2.rst (cgroup.freeze).

A frozen process of v1 does not die, not even by SIGKILL: whoever kills one thaws it first. For the case that the warden
itself is killed, a process of its own waits for that and thaws what it had frozen.
"""

from __future__ import annotations

import errno
import os
import select

from pytest_nsbox.kernel import process
from pytest_nsbox.kernel.cgroup_tree import remove_all
from pytest_nsbox.policy.errors import KernelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pytest_nsbox.kernel.cgroup_node import Node
    from pytest_nsbox.kernel.cgroup_tree import Group

# Seconds. A process in an uninterruptible wait freezes later, or never.
PATIENCE = 2.0


class Freezer:
    """Freezes the processes of one box. `group` is the box's own: of the freezer hierarchy, not made yet (v1), or the
    one that it lives in (v2).
    """

    def __init__(self, node: Node, group: Group, version: int) -> None:
        self._node = node
        self._group = group
        self._v1 = version == 1
        self._made = False
        self._frozen = False
        # The process that thaws when we are gone: its pidfd.
        self._watcher = -1

    def freeze(self) -> None:
        """Begin to stop every process of the box; `is_frozen` says when it is done. Raises KernelError."""
        if self._frozen:
            return
        if not self._v1:
            self._group.write("cgroup.freeze", "1")
            self._frozen = True
            return
        if not self._made:
            self._group.make()
            self._made = True
        self._watch()
        self._frozen = True
        self._gather()
        self._group.write("freezer.state", "FROZEN")

    def is_frozen(self) -> bool:
        """Say if all of it stands still."""
        if not self._v1:
            return "frozen 1" in (self._group.read("cgroup.events") or "")
        if not self._gather() and self._group.read("freezer.state") == "FROZEN\n":
            return True
        # Who was on the way to wait for its child of vfork(2) when we asked, waits on unfrozen until it is asked again,
        # and the child, frozen before it could exec, never lets it go.
        self._group.write("freezer.state", "FROZEN")
        return False

    def _gather(self) -> bool:
        """Move the box's processes into the group; say if any was not there yet.

        Children are born in the group that their parent is in, so when nobody is missing, nobody can be.
        """
        missing = set(self._node.pids()) - self._group.pids()
        for pid in missing:
            try:
                self._group.write("cgroup.procs", str(pid))
            except KernelError as error:
                # Ended meanwhile.
                if error.errno != errno.ESRCH:
                    raise
        return bool(missing)

    def _watch(self) -> None:
        state = self._group.open("freezer.state", os.O_WRONLY)
        ours = process.open_pidfd(os.getpid())
        try:
            pid, self._watcher = process.clone3(0)
            if pid == 0:
                try:
                    process.close_all_but((state, ours))
                    process.set_name("nsbox-thaw")
                    waiting = select.poll()
                    waiting.register(ours, select.POLLIN)
                    waiting.poll()
                    os.write(state, b"THAWED")
                finally:
                    os._exit(0)
        finally:
            os.close(state)
            os.close(ours)

    def thaw(self) -> None:
        """Let the processes go on; a second call does nothing."""
        if self._frozen:
            self._frozen = False
            self._group.write(*(("freezer.state", "THAWED") if self._v1 else ("cgroup.freeze", "0")))
        if self._watcher >= 0:
            process.kill(self._watcher)
            os.waitid(os.P_PIDFD, self._watcher, os.WEXITED)
            os.close(self._watcher)
            self._watcher = -1

    def remove(self) -> None:
        """Remove what was made; the box has ended."""
        self.thaw()
        if self._v1 and self._made:
            self._made = False
            remove_all([self._group], PATIENCE)
