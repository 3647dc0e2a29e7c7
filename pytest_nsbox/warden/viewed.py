"""The box's side of `views`: what the process that goes into a box with ``proc="limits"`` does itself. It is imported
before the fork; from then on the process and all that it starts have the CPUs and the sysinfo(2) of the box.
"""

from __future__ import annotations

import errno
from _socket import AF_UNIX, SOCK_STREAM, socket

from pytest_nsbox.kernel.listener import listen
from pytest_nsbox.kernel.rights import rights
from pytest_nsbox.policy.errors import KernelError
from pytest_nsbox.real import os

# Another listener is there already (a box in a box), the kernel has none, or a container's filter forbids it.
WITHOUT = frozenset({errno.EBUSY, errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.EACCES})


def settle(cpus: tuple[int, ...], line: int) -> None:
    """In the box, as its root: stay on `cpus`, have sysinfo(2) answered, and tell the warden over `line`, which is
    closed.
    """
    try:
        os.sched_setaffinity(0, cpus)
    except OSError as error:
        raise KernelError("sched_setaffinity", ",".join(map(str, cpus)), error.errno or 0) from None
    try:
        listener = listen()
    except KernelError as error:
        if error.errno not in WITHOUT:
            raise
        listener = -1
    own = socket(AF_UNIX, SOCK_STREAM, 0, line)
    try:
        own.sendmsg([b"b"], rights([listener] if listener >= 0 else []))
        # It answers when the files are fresh, or hangs up when it is gone; then so are we.
        own.recv(1)
    except OSError as error:
        raise KernelError("tell the warden", "that the box began", error.errno or 0) from None
    finally:
        own.close()
        if listener >= 0:
            os.close(listener)
