"""A terminal for a program in a box: one of the box's own devpts, whose other end somebody outside holds. Source:
pty(7), ioctl_tty(2).
"""

from __future__ import annotations

import errno
import fcntl
import os
from _socket import socket

from pytest_nsbox.kernel.rights import rights
from pytest_nsbox.policy.errors import KernelError

_UNLOCK = 0x40045431  # TIOCSPTLCK
_PEER = 0x5441  # TIOCGPTPEER
_CONTROL = 0x540E  # TIOCSCTTY


def open_and_send(to: int) -> int:
    """In the box: open a terminal, make it that of our session, send its other end on the socket `to`; return it."""
    try:
        master = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        fcntl.ioctl(master, _UNLOCK, bytes(4))
        slave = fcntl.ioctl(master, _PEER, os.O_RDWR | os.O_NOCTTY)
        fcntl.ioctl(slave, _CONTROL, 0)
        connection = socket(fileno=os.dup(to))
        try:
            connection.sendmsg([b"t"], rights([master]))
        finally:
            connection.close()
        os.close(master)
    except OSError as error:
        raise KernelError("open", "a terminal of the box", error.errno or errno.EIO) from None
    return slave
