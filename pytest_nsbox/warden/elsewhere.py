"""Work in other network namespaces: sockets are opened there and used from here.

Root goes there and comes back. A warden in a user namespace of its own (an ordinary user's, one in a container or in a
box) mostly has no rights in the namespace that it came from and could not return, so a child of it goes instead and
sends what it opened.
"""

from __future__ import annotations

import marshal
import os
from _socket import MSG_CMSG_CLOEXEC

from pytest_nsbox.kernel import namespaces
from pytest_nsbox.kernel.line import line
from pytest_nsbox.kernel.rights import descriptors, rights, room
from pytest_nsbox.policy.errors import KernelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_nsbox.warden.doors import Doors

    Open = Callable[[], list[int]]

_NEW = -1


class Elsewhere:
    """The way to other network namespaces and back."""

    def __init__(self, doors: Doors) -> None:
        self._doors = doors
        self.home = doors.open_namespace("self", "net")
        try:
            # To where we are: whether we could come back from elsewhere.
            doors.setns(self.home, namespaces.NEWNET)
        except KernelError:
            self.close()

    def make(self) -> int:
        """Return a descriptor of a new network namespace; it lives as long as anything has it. Raises KernelError."""
        return self.open(_NEW, lambda: [self._doors.open_namespace("self", "net")])[0]

    def open(self, namespace: int, function: Open) -> list[int]:
        """Return the descriptors that `function` opens in the namespace `namespace`. Raises KernelError."""
        if self.home < 0:
            return self._send(namespace, function)
        self._go(namespace)
        try:
            return function()
        finally:
            self._doors.setns(self.home, namespaces.NEWNET)

    def _go(self, namespace: int) -> None:
        if namespace == _NEW:
            self._doors.unshare(namespaces.NEWNET)
        else:
            self._doors.setns(namespace, namespaces.NEWNET)

    def _send(self, namespace: int, function: Open) -> list[int]:
        ours, theirs = line()
        pid = os.fork()
        if pid == 0:
            try:
                try:
                    self._go(namespace)
                    found = function()
                    theirs.sendmsg([marshal.dumps(None)], rights(found))
                except KernelError as error:
                    theirs.send(marshal.dumps((error.call, error.target, error.errno)))
                except OSError as error:
                    theirs.send(marshal.dumps(("open", "network namespace", error.errno or 0)))
            finally:
                os._exit(0)
        theirs.close()
        try:
            data, ancillary, _, _ = ours.recvmsg(4096, room(), MSG_CMSG_CLOEXEC)
        finally:
            os.waitpid(pid, 0)
            ours.close()
        failure = marshal.loads(data) if data else ("fork", "network namespace", 5)
        if failure is not None:
            raise KernelError(*failure)
        return descriptors(ancillary)

    def close(self) -> None:
        """Forget the way back."""
        if self.home >= 0:
            os.close(self.home)
            self.home = -1
