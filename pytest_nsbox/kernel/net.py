"""The network of a box. Source: netdevice(7)."""

from __future__ import annotations

import struct
from _socket import AF_INET, SOCK_CLOEXEC, SOCK_DGRAM, socket

from pytest_nsbox.policy.errors import KernelError

_IFF_UP_RUNNING = 0x1 | 0x40

# Family and type of a socket to ask on, and the request of ioctl(2) with its struct ifreq.
ANY_SOCKET = (int(AF_INET), SOCK_DGRAM | SOCK_CLOEXEC)
SIOCSIFFLAGS = 0x8914
LOOPBACK_UP = struct.pack("16sh14x", b"lo", _IFF_UP_RUNNING)


def loopback_up() -> None:
    """Bring `lo` of our network namespace up; the kernel gives it 127.0.0.1 and ::1 by itself."""
    import fcntl

    try:
        probe = socket(*ANY_SOCKET)
    except OSError as error:
        raise KernelError("socket", "AF_INET", error.errno or 0) from None
    try:
        fcntl.ioctl(probe.fileno(), SIOCSIFFLAGS, LOOPBACK_UP)
    except OSError as error:
        raise KernelError("ioctl SIOCSIFFLAGS", "lo", error.errno or 0) from None
    finally:
        probe.close()
