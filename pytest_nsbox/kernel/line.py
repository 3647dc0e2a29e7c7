"""A line between two of our processes. Sources: unix(7), socket(7)."""

from __future__ import annotations

import struct
from _socket import (
    AF_UNIX,
    SO_RCVTIMEO,
    SOCK_CLOEXEC,
    SOCK_SEQPACKET,
    SOL_SOCKET,
    socket,
    socketpair,
)


def line() -> tuple[socket, socket]:
    """Two ends of a line that keeps messages whole."""
    return socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)


def be_patient(sock: socket, seconds: float) -> None:
    """Have a read of `sock` end with BlockingIOError after so many seconds."""
    whole, part = divmod(seconds, 1)
    sock.setsockopt(SOL_SOCKET, SO_RCVTIMEO, struct.pack("@ll", int(whole), int(part * 1e6)))
