"""Published ports in the warden: it takes them on the host's loopback, the forwarder carries what comes there."""

from __future__ import annotations

import errno
import marshal
import os
import struct
from _socket import (
    AF_INET,
    AF_INET6,
    AF_UNIX,
    IPPROTO_IPV6,
    IPV6_V6ONLY,
    MSG_NOSIGNAL,
    SCM_RIGHTS,
    SO_REUSEADDR,
    SOCK_CLOEXEC,
    SOCK_DGRAM,
    SOCK_NONBLOCK,
    SOCK_SEQPACKET,
    SOCK_STREAM,
    SOL_SOCKET,
    socket,
    socketpair,
)  # fmt: skip

from pytest_nsbox.kernel import process
from pytest_nsbox.policy.errors import BoxFailed, KernelError
from pytest_nsbox.policy.networks import Port

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

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
        self._server = server
        self._elsewhere = elsewhere
        self._control: socket | None = None
        self._pidfd = -1

    def give(self, key: str, published: Published, namespace: int, targets: list[Address]) -> None:
        """Have what comes on `published` carried to `targets` (the first that answers) in the network namespace
        `namespace`, until `drop`; our own descriptors of the port are closed. Raises BoxFailed or KernelError.
        """
        message = ("add", key, published.port.protocol, targets)
        fds = [namespace, *(listener.fileno() for listener in published.listeners)]
        try:
            if not self._tell(message, fds):
                # Somebody killed it a moment ago.
                self.close()
                if not self._tell(message, fds):
                    raise BoxFailed("publish: the process that carries published ports ends as soon as it begins")
        finally:
            published.close()

    def give_way(self, key: str, namespace: int, ways: dict[str, list[int]], servers: list[Address]) -> None:
        """Have what leaves the network namespace `namespace` carried to where it wants to go from here, until `drop`.

        ways     descriptors of transparent sockets of that namespace, which stay the caller's: "tcp" and "udp"; and of
                 those where names are asked for, "tcp names" and "udp names", which goes to `servers`
        """
        for kind, fds in ways.items():
            if fds and not self._tell(("way", key, kind, servers), [namespace, *fds]):
                raise BoxFailed("the process that carries what leaves networks is gone")

    def drop(self, key: str) -> None:
        """Give up the ports of `key`: they are free then."""
        if self._control is not None and self._tell(("drop", key), []):
            try:
                self._control.recv(16)
            except OSError:
                # It hangs, or somebody killed it: the ports are free then, or soon will be.
                return

    def _tell(self, message: tuple[Any, ...], fds: list[int]) -> bool:
        """Tell the process something; False if it is gone. Raises KernelError if it cannot be started."""
        if self._control is None:
            self._start()
        assert self._control is not None
        rights = [(SOL_SOCKET, SCM_RIGHTS, struct.pack(f"@{len(fds)}i", *fds))] if fds else []
        try:
            self._control.sendmsg([marshal.dumps(message)], rights, MSG_NOSIGNAL)
        except OSError:
            return False
        return True

    def _start(self) -> None:
        from pytest_nsbox.warden import forwarder

        ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
        pid, self._pidfd = self._server.doors.clone3(0)
        if pid == 0:
            keep = (self._elsewhere.home,) if self._elsewhere.home >= 0 else ()
            forwarder.run(theirs.detach(), self._elsewhere, keep)
        theirs.close()
        # SO_RCVTIMEO, socket(7).
        ours.setsockopt(SOL_SOCKET, 20, struct.pack("@ll", _PATIENCE, 0))
        self._control = ours
        self._server.watch(self._pidfd, self._ended)

    def _ended(self) -> None:
        """Somebody killed it: ports that are published later get another one."""
        if process.reap(self._pidfd):
            self._server.forget(self._pidfd)
            self._pidfd = -1
            if self._control is not None:
                self._control.close()
                self._control = None

    def close(self) -> None:
        """End the process."""
        if self._pidfd >= 0:
            process.kill(self._pidfd)
            os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
            self._server.forget(self._pidfd)
            self._pidfd = -1
        if self._control is not None:
            self._control.close()
            self._control = None
