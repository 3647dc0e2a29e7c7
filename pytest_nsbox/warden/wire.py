"""What is said about containers: frames of JSON, bytes and descriptors, on a connection of its own.

A frame is the lengths of two parts (4 bytes each, big endian), a JSON object, and bytes as they are; the object's
`fds` says how many descriptors travel with it (SCM_RIGHTS, unix(7)). A test inside a box holds such a connection too,
so nothing but plain data is read from it.
"""

from __future__ import annotations

import _socket
import errno
import json

from pytest_nsbox.kernel.rights import descriptors, rights, room
from pytest_nsbox.real import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    Head = dict[str, Any]

_CHUNK = 1 << 18
_ANCILLARY = room()
_MOST = 1 << 30
# What may wait for a client that does not read its answers.
_BACKLOG = 1 << 28


class BrokenWireError(Exception):
    """The other side said something that is no frame, or nothing any more."""


class Wire:
    """One end of a connection."""

    def __init__(self, sock: _socket.socket) -> None:
        self.sock = sock
        self._buffer = bytearray()
        self._fds: list[int] = []
        self._unsent: list[tuple[memoryview, tuple[int, ...]]] = []

    def fileno(self) -> int:
        return self.sock.fileno()

    def send(self, head: Head, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Send a frame, all of it; OSError if the other side is gone."""
        data = memoryview(_encode(head, payload, fds))
        while data:
            data = data[self._push(data, fds, 0) :]
            fds = ()

    def send_soon(self, head: Head, payload: bytes = b"", fds: Sequence[int] = ()) -> bool:
        """Send what can be sent without waiting, and the rest when `flush` is called; say if that was all. OSError as
        for `send`.
        """
        data = memoryview(_encode(head, payload, fds))
        # Descriptors of our own: the caller may close its at once.
        self._unsent.append((data, tuple(os.dup(fd) for fd in fds)))
        if sum(len(part) for part, _ in self._unsent) > _BACKLOG:
            raise OSError(errno.ENOBUFS, "too many answers that nobody reads")
        return self.flush()

    def flush(self) -> bool:
        """Send more of what waits; say if nothing is left."""
        while self._unsent:
            data, fds = self._unsent[0]
            try:
                sent = self._push(data, fds, _socket.MSG_DONTWAIT)
            except BlockingIOError:
                return False
            for fd in fds:
                os.close(fd)
            if sent < len(data):
                self._unsent[0] = (data[sent:], ())
            else:
                del self._unsent[0]
        return True

    def _push(self, data: memoryview, fds: Sequence[int], flags: int) -> int:
        flags |= _socket.MSG_NOSIGNAL
        if not fds:
            return self.sock.send(data, flags)
        return self.sock.sendmsg([data], rights(fds), flags)

    def fill(self, flags: int = 0) -> bool:
        """Read what has come, at least something unless `flags` say otherwise; False at the end of the stream."""
        try:
            data, ancillary, _, _ = self.sock.recvmsg(_CHUNK, _ANCILLARY, flags | _socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            return False
        self._fds += descriptors(ancillary)
        self._buffer += data
        return bool(data)

    def pop(self) -> tuple[Head, bytes, tuple[int, ...]] | None:
        """Take the next whole frame out of what was read, or return None. BrokenWireError for what is none."""
        buffer = self._buffer
        if len(buffer) < 8:
            return None
        middle = 8 + int.from_bytes(buffer[:4], "big")
        end = middle + int.from_bytes(buffer[4:8], "big")
        if end > _MOST:
            raise BrokenWireError(f"a frame of {end} bytes")
        if len(buffer) < end:
            return None
        try:
            head = json.loads(bytes(buffer[8:middle]))
        except (ValueError, RecursionError):
            raise BrokenWireError("not JSON where a frame starts") from None
        if not isinstance(head, dict) or not isinstance(head.get("n"), int) or not isinstance(head.get("fds", 0), int):
            raise BrokenWireError("JSON that is no frame")
        payload = bytes(buffer[middle:end])
        del buffer[:end]
        count = head.pop("fds", 0)
        fds, self._fds[:count] = tuple(self._fds[:count]), ()
        return head, payload, fds

    def close(self) -> None:
        """Close this end, with the descriptors that nobody took."""
        for fd in (*self._fds, *(fd for _, fds in self._unsent for fd in fds)):
            os.close(fd)
        self._fds, self._unsent = [], []
        self.sock.close()


def _encode(head: Head, payload: bytes, fds: Sequence[int]) -> bytes:
    text = json.dumps({**head, "fds": len(fds)} if fds else head).encode("ascii")
    return len(text).to_bytes(4, "big") + len(payload).to_bytes(4, "big") + text + payload
