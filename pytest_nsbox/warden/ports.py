"""Published ports in the warden: it takes them on the host's loopback, the forwarder carries what comes there."""

from __future__ import annotations

import errno
from _socket import (
    AF_INET,
    AF_INET6,
    IPPROTO_IPV6,
    IPV6_V6ONLY,
    SO_REUSEADDR,
    SOCK_CLOEXEC,
    SOCK_DGRAM,
    SOCK_NONBLOCK,
    SOCK_STREAM,
    SOL_SOCKET,
    socket,
)  # fmt: skip
from contextlib import suppress

from pytest_nsbox.policy.errors import BoxFailed, KernelError
from pytest_nsbox.policy.networks import Port
from pytest_nsbox.warden.helper import Helper

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from pytest_nsbox.warden.elsewhere import Elsewhere
    from pytest_nsbox.warden.server import Server

    Address = tuple[str, int]

_BACKLOG = 128
_ATTEMPTS = 20
_PATIENCE = 5  # seconds
_BOTH = ("127.0.0.1", "::1")


class Published:
    """One port that is taken: what listens for it, until the forwarder has that."""

    def __init__(self, port: Port, number: int, listeners: list[socket]) -> None:
        self.port = port
        self.number = number
        self.listeners = listeners

    def close(self) -> None:
        """Close our descriptors."""
        for listener in self.listeners:
            listener.close()
        self.listeners.clear()


def take(port: Port) -> Published:
    """Take the host's port that `port` wants. Raises BoxFailed."""
    for attempt in range(_ATTEMPTS):
        addresses = (port.address,) if port.address else _BOTH
        listeners: list[socket] = []
        number = port.host
        try:
            for address in addresses:
                listener = _listen(port.protocol, address, number)
                if listener is None:
                    continue
                listeners.append(listener)
                number = number or listener.getsockname()[1]
        except OSError as error:
            for listener in listeners:
                listener.close()
            # Any free one: one that is free on both.
            if port.host or error.errno != errno.EADDRINUSE or attempt == _ATTEMPTS - 1:
                shown = f"[{address}]" if ":" in address else address
                text = KernelError(f"publish {port.key()} on {shown}:{number}", "", error.errno or 0)
                raise BoxFailed(str(text)) from None
        else:
            return Published(port, number, listeners)
    raise AssertionError("unreachable")


def _listen(protocol: str, address: str, number: int) -> socket | None:
    """Return a socket that is bound there; None where there is no such address. Raises OSError."""
    try:
        kind = SOCK_STREAM if protocol == "tcp" else SOCK_DGRAM
        made = socket(AF_INET6 if ":" in address else AF_INET, kind | SOCK_NONBLOCK | SOCK_CLOEXEC)
    except OSError:
        if address == "::1":
            return None
        raise
    try:
        if address == "::1":
            made.setsockopt(IPPROTO_IPV6, IPV6_V6ONLY, 1)
        if protocol == "tcp":
            made.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        made.bind((address, number))
        if protocol == "tcp":
            made.listen(_BACKLOG)
    except OSError as error:
        made.close()
        if address == "::1" and error.errno == errno.EADDRNOTAVAIL:
            return None
        raise
    return made


class Ports:
    """The published ports of one warden, and the process that carries them."""

    def __init__(self, server: Server, elsewhere: Elsewhere) -> None:
        self._elsewhere = elsewhere
        self._process = Helper(server, lambda: server.doors.clone3(0), self._run, _PATIENCE)

    def _run(self, control: int) -> NoReturn:
        from pytest_nsbox.warden import forwarder

        keep = (self._elsewhere.home,) if self._elsewhere.home >= 0 else ()
        forwarder.run(control, self._elsewhere, keep)

    def give(self, key: str, published: Published, namespace: int, targets: list[Address]) -> None:
        """Have what comes on `published` carried to `targets` (the first that answers) in the network namespace
        `namespace`, until `drop`; our own descriptors of the port are closed. Raises BoxFailed or KernelError.
        """
        message = ("add", key, published.port.protocol, targets)
        fds = [namespace, *(listener.fileno() for listener in published.listeners)]
        try:
            if not self._process.tell(message, fds):
                # Somebody killed it a moment ago.
                self.close()
                if not self._process.tell(message, fds):
                    raise BoxFailed("publish: the process that carries published ports ends as soon as it begins")
        finally:
            published.close()

    def give_way(self, key: str, namespace: int, ways: dict[str, list[int]], servers: list[Address]) -> None:
        """Have what leaves the network namespace `namespace` carried to where it wants to go from here, until `drop`.

        ways     descriptors of transparent sockets of that namespace, which stay the caller's: "tcp" and "udp"; and of
                 those where names are asked for, "tcp names" and "udp names", which goes to `servers`
        """
        for kind, fds in ways.items():
            if fds and not self._process.tell(("way", key, kind, servers), [namespace, *fds]):
                raise BoxFailed("the process that carries what leaves networks is gone")

    def drop(self, key: str) -> None:
        """Give up the ports of `key`: they are free then."""
        if self._process.is_there() and self._process.tell(("drop", key)):
            # It may hang, or somebody killed it: the ports are free then, or soon will be.
            with suppress(BlockingIOError):
                self._process.hear(16)

    def close(self) -> None:
        """End the process."""
        self._process.close()
