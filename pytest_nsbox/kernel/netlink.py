"""A netlink socket: requests as bytes, acknowledged one by one. Source: netlink(7), rtnetlink(7).

Written out here and not taken from a library: every box's init is a fork of the warden, and the modules of pyroute2
(370, 0.3 s) would be in each of them.
"""

from __future__ import annotations

import struct
from _socket import AF_NETLINK, SOCK_CLOEXEC, SOCK_RAW, SOL_SOCKET, socket

from pytest_nsbox.policy.errors import KernelError
from pytest_nsbox.policy.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

ROUTE = 0
NETFILTER = 12

REQUEST = 0x1
ACK = 0x4
EXCLUSIVE = 0x200
CREATE = 0x400
REPLACE = 0x100
_DUMP = 0x300
_ERROR = 2
_DONE = 3
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_NESTED = 0x8000
_CHUNK = 1 << 18
_PATIENCE = 10  # seconds; the kernel answers at once, or it never does


@record
class Message:
    """One request.

    what  for an error's text: the call, and what it is about
    """

    kind: int
    flags: int
    body: bytes
    what: tuple[str, str]


def attribute(kind: int, content: bytes) -> bytes:
    """Return a netlink attribute, padded as the kernel wants it."""
    padding = bytes(-len(content) % 4)
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(content), kind) + content + padding


def nested(kind: int, *parts: bytes) -> bytes:
    """Return an attribute that holds others."""
    return attribute(kind | _NESTED, b"".join(parts))


def text(value: str) -> bytes:
    """Return a text as the kernel wants it, with a zero at its end."""
    return value.encode() + b"\0"


def attributes(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Return kind and content of each attribute in `content`."""
    at = 0
    while at + _ATTRIBUTE.size <= len(content):
        length, kind = _ATTRIBUTE.unpack_from(content, at)
        if length < _ATTRIBUTE.size:
            return
        yield kind & 0x3FFF, content[at + _ATTRIBUTE.size : at + length]
        at += length + -length % 4


def open_netlink(family: int = ROUTE) -> int:
    """Return the descriptor of a new socket of the network namespace that we are in; it stays there wherever we go."""
    try:
        return socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, family).detach()
    except OSError as error:
        raise KernelError("socket", f"AF_NETLINK {family}", error.errno or 0) from None


class Netlink:
    """What can be asked of the kernel through the socket `fd`, which is closed with this."""

    def __init__(self, fd: int) -> None:
        self._socket = socket(fileno=fd)
        # SO_RCVTIMEO, socket(7).
        self._socket.setsockopt(SOL_SOCKET, 20, struct.pack("@ll", _PATIENCE, 0))
        self._number = 0

    def do(self, messages: Sequence[Message]) -> None:
        """Have the kernel do what `messages` say, in order. Raises KernelError for the first that it refuses; those
        after it are done all the same.
        """
        if not messages:
            return
        numbers = {}
        data = []
        for message in messages:
            self._number += 1
            numbers[self._number] = message
            data.append(self._encode(message, REQUEST | ACK | message.flags))
        failed: KernelError | None = None
        for _, number, code, _ in self._talk(b"".join(data), messages[0], len(messages)):
            failed = failed or (KernelError(*numbers[number].what, code) if code and number in numbers else None)
        if failed is not None:
            raise failed

    def batch(self, begin: bytes, messages: Sequence[Message], end: bytes) -> None:
        """Have nfnetlink do all of `messages` or none. Raises KernelError."""
        numbers = {}
        data = [_HEADER.pack(_HEADER.size + len(begin), 0x10, REQUEST, 0, 0) + begin]
        for message in messages:
            self._number += 1
            numbers[self._number] = message
            data.append(self._encode(message, REQUEST | ACK | message.flags))
        data.append(_HEADER.pack(_HEADER.size + len(end), 0x11, REQUEST, 0, 0) + end)
        for _, number, code, _ in self._talk(b"".join(data), messages[0], len(messages)):
            if code:
                # A batch that failed is not told of any further.
                what = numbers[number].what if number in numbers else messages[0].what
                raise KernelError(*what, code)

    def dump(self, message: Message) -> list[tuple[int, bytes]]:
        """Return kind and body of all that the kernel has to tell. Raises KernelError."""
        self._number += 1
        found = []
        for kind, _, code, body in self._talk(self._encode(message, REQUEST | _DUMP), message, 1):
            if code:
                raise KernelError(*message.what, code)
            if kind not in (_ERROR, _DONE):
                found.append((kind, body))
        return found

    def _encode(self, message: Message, flags: int) -> bytes:
        length = _HEADER.size + len(message.body)
        return _HEADER.pack(length, message.kind, flags, self._number, 0) + message.body + bytes(-length % 4)

    def _talk(self, data: bytes, message: Message, answers: int) -> Iterator[tuple[int, int, int, bytes]]:
        """Return kind, number, errno and body of what the kernel says until it has answered so often."""
        try:
            self._socket.send(data)
            while answers > 0:
                for kind, number, body in _messages(self._socket.recv(_CHUNK)):
                    answers -= kind in (_ERROR, _DONE)
                    code = -struct.unpack_from("=i", body)[0] if kind == _ERROR else 0
                    yield kind, number, code, body
        except OSError as error:
            raise KernelError(*message.what, error.errno or 0) from None

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def _messages(data: bytes) -> Iterable[tuple[int, int, bytes]]:
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, _, number, _ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size:
            return
        yield kind, number, data[at + _HEADER.size : at + length]
        at += length + -length % 4
