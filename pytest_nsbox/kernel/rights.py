"""Descriptors that travel beside a message on a unix socket. Source: unix(7), SCM_RIGHTS."""

from __future__ import annotations

import struct
from _socket import CMSG_SPACE, SCM_RIGHTS, SOL_SOCKET

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    Ancillary = tuple[int, int, bytes]

MOST = 253  # descriptors of one message: the kernel's SCM_MAX_FD


def rights(fds: Sequence[int]) -> list[Ancillary]:
    """Return what has `fds` travel along, for sendmsg."""
    return [(SOL_SOCKET, SCM_RIGHTS, struct.pack(f"@{len(fds)}i", *fds))] if fds else []


def room(most: int = MOST) -> int:
    """Return what recvmsg must be told for so many descriptors to fit."""
    return CMSG_SPACE(most * 4)


def descriptors(ancillary: Iterable[Ancillary]) -> list[int]:
    """Return the descriptors that came along, given what recvmsg returned."""
    return [
        fd
        for level, kind, packed in ancillary
        if level == SOL_SOCKET and kind == SCM_RIGHTS
        # One that was cut off in the middle is none.
        for (fd,) in struct.iter_unpack("@i", packed[: len(packed) // 4 * 4])
    ]
