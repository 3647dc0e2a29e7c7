"""The network of a box. Source: netdevice(7)."""

from __future__ import annotations

import struct

from pytest_nsbox.policy.errors import KernelError

_SIOCSIFFLAGS = 0x8914
_IFF_UP_RUNNING = 0x1 | 0x40


def loopback_up() -> None:
    """Bring `lo` of our network namespace up; the kernel gives it 127.0.0.1 and ::1 by itself."""
    import _socket
    import fcntl

    try:
        probe = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    except OSError as error:
        raise KernelError("socket", "AF_INET", error.errno or 0) from None
    try:
        fcntl.ioctl(probe.fileno(), _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP_RUNNING))
    except OSError as error:
        raise KernelError("ioctl SIOCSIFFLAGS", "lo", error.errno or 0) from None
    finally:
        probe.close()
