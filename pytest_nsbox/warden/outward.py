"""What leaves a network, in the process that carries it: taken in the network's namespace by transparent sockets, sent
on from the host's. Source: ip(7), ipv6(7), the kernel's Documentation/networking/tproxy.rst.
"""

from __future__ import annotations

import struct
from _socket import AF_INET, AF_INET6, CMSG_SPACE, SO_REUSEADDR, SOCK_DGRAM, SOCK_STREAM, SOL_SOCKET, inet_ntop, socket

from pytest_nsbox.warden.forwarder import Datagrams, Listener, open_here

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pytest_nsbox.warden.forwarder import Address

# Level, IP_TRANSPARENT and IP_RECVORIGDSTADDR (which is the message's kind too), by family.
OPTIONS = {AF_INET: (0, 19, 20), AF_INET6: (41, 75, 74)}


class Names(Listener):
    """Connections to the name server that boxes know: they go to the host's, and wait for nobody."""

    patience = 0.0

    def open(self, address: str) -> socket:
        """See Listener."""
        return open_here(address, SOCK_STREAM)


class Out(Names):
    """Connections to anywhere: they go where they wanted to go."""

    def lead(self, near: socket) -> list[Address]:
        """See Listener."""
        return [near.getsockname()[:2]]


class DatagramsOut(Datagrams):
    """Datagrams to anywhere. A flow is its sender and its destination, which answers seem to come from."""

    def take(self) -> tuple[bytes, Any]:
        """See Datagrams."""
        data, ancillary, _, sender = self.socket.recvmsg(1 << 16, CMSG_SPACE(28))
        (content,) = (content for level, kind, content in ancillary if (level, kind) in _WANTED)
        # sockaddr_in or sockaddr_in6
        (port,) = struct.unpack_from("!H", content, 2)
        address = inet_ntop(AF_INET, content[4:8]) if len(content) < 28 else inet_ntop(AF_INET6, content[8:24])
        return data, (sender, (address, port))

    def open(self, flow: Any) -> socket:
        """See Datagrams."""
        return _datagrams_to(flow[1])

    def give_back(self, data: bytes, flow: Any) -> None:
        """See Datagrams."""
        sender, destination = flow
        answer = self.namespace.open(destination[0], SOCK_DGRAM)
        try:
            level, transparent, _ = OPTIONS[AF_INET6 if ":" in destination[0] else AF_INET]
            answer.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
            answer.setsockopt(level, transparent, 1)
            answer.bind(destination)
            answer.sendto(data, sender)
        finally:
            answer.close()


class DatagramNames(Datagrams):
    """Questions to the name server that boxes know: they go to the host's."""

    def open(self, flow: Any) -> socket:  # noqa: ARG002 - all go to the same
        """See Datagrams."""
        address, port = self.targets[0]
        return _datagrams_to((address, port))


def _datagrams_to(destination: Address) -> socket:
    far = open_here(destination[0], SOCK_DGRAM)
    far.connect(destination)
    return far


_WANTED = {(level, original) for level, _, original in OPTIONS.values()}
KINDS: dict[str, Any] = {"tcp": Out, "udp": DatagramsOut, "tcp names": Names, "udp names": DatagramNames}
