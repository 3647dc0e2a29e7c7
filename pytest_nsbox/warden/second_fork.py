"""How a child of ours comes into namespaces that we could not come back from.

An ordinary user's into a box's pid namespace: our children are born there only after setns(CLONE_NEWPID), which needs
CAP_SYS_ADMIN in the own user namespace (setns(2)). So the forked child goes into the box's user namespace first, and
forks again from there: a sibling, which is our own child like the first one, and the only one that goes on. The init
of a box that shares the network of another one is born in that in the same way: its warden may have no rights in the
network that it would have to go back to.
"""

from __future__ import annotations

from contextlib import suppress

from pytest_nsbox.kernel import namespaces, process
from pytest_nsbox.policy.errors import KernelError
from pytest_nsbox.real import os


class SecondFork:
    """Made before the fork; `in_child` then is called in its child, and `in_parent` in us.

    flags  the namespaces of the box that the second child is in: who has rights over them needs no user namespace
    new    kinds of namespaces that the second child has of its own
    """

    def __init__(self, pidfd: int, flags: int = namespaces.NEWUSER | namespaces.NEWPID, new: int = 0) -> None:
        self._pidfd = pidfd
        self._flags = flags
        self._new = new
        self._reader, self._writer = os.pipe()

    def in_child(self) -> KernelError | None:
        """Return in the second child; in the first one only if there is no second, with the reason."""
        os.close(self._reader)
        failure = None
        try:
            namespaces.setns(self._pidfd, self._flags)
            pid = process.fork_sibling(self._new)
        except KernelError as error:
            failure, pid = error, os.getpid()
        if pid == 0:
            os.close(self._writer)
            return None
        try:
            os.write(self._writer, pid.to_bytes(8, "little"))
        finally:
            if failure is None:
                os._exit(0)
        os.close(self._writer)
        return failure

    def in_parent(self, first: int) -> int:
        """Return the pid of the child that goes on, given that of the `first`, which is waited for."""
        os.close(self._writer)
        try:
            told = os.read(self._reader, 8)
        finally:
            os.close(self._reader)
        pid = int.from_bytes(told, "little") if told else first
        if pid != first:
            # No child is to be found where SIGCHLD is ignored.
            with suppress(ChildProcessError):
                os.waitpid(first, 0)
        return pid
