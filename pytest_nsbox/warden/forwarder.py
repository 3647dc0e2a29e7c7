"""The process that carries published ports: it accepts on the host's loopback and connects in the network of a box.
(And what leaves a network with a way out, the other way round: outward.py.)

A fork of the warden, made with the first published port, so that the warden never waits for anybody's data. It ends
with the warden. What it is told (messages of `ports.Ports`): what to listen on, and where that leads.
"""

from __future__ import annotations

import errno
import heapq
import marshal
import os
import select
import struct
import time
from _socket import (
    AF_INET,
    AF_INET6,
    MSG_CMSG_CLOEXEC,
    SHUT_WR,
    SO_ERROR,
    SO_LINGER,
    SOCK_CLOEXEC,
    SOCK_DGRAM,
    SOCK_NONBLOCK,
    SOCK_STREAM,
    SOL_SOCKET,
    socket,
)

from pytest_nsbox.kernel import process
from pytest_nsbox.kernel.rights import descriptors, room
from pytest_nsbox.policy.errors import KernelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from pytest_nsbox.warden.elsewhere import Elsewhere

    Address = tuple[str, int]

LARGEST_MESSAGE = 1 << 16
MOST_DESCRIPTORS = 16
DROPPED = b"d"
# What is read of one side before the other has taken it.
_MOST_WAITING = 1 << 18
# A server in a box that has just begun is waited for so long.
_PATIENCE = 3.0  # seconds
_PAUSE = 0.02
# How long answers to a datagram are expected.
_FLOW = 120.0
_MOST_FLOWS = 1000
_READ, _WRITE = select.EPOLLIN, select.EPOLLOUT


class Forwarder:
    """The loop, and who is told of what."""

    def __init__(self, control: int, elsewhere: Elsewhere) -> None:
        self._control = socket(fileno=control)
        self._elsewhere = elsewhere
        self._poll = select.epoll()
        self._actions: dict[int, Callable[[int], None]] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timed = 0
        # By what the warden calls it.
        self._doors: dict[str, list[Listener | Datagrams]] = {}

    def run(self) -> None:
        """Forward until the warden hangs up."""
        self.watch(self._control.fileno(), _READ, lambda _: None)
        while True:
            rest = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None
            for fd, events in self._poll.poll(rest):
                if fd == self._control.fileno():
                    if not self._listen():
                        return
                elif fd in self._actions:
                    self._actions[fd](events)
            while self._timers and self._timers[0][0] <= time.monotonic():
                heapq.heappop(self._timers)[2]()

    def _listen(self) -> bool:
        """Do what the warden says; False if it is gone."""
        data, ancillary, _, _ = self._control.recvmsg(LARGEST_MESSAGE, room(MOST_DESCRIPTORS), MSG_CMSG_CLOEXEC)
        if not data:
            return False
        fds = descriptors(ancillary)
        do, key, *rest = marshal.loads(data)
        if do == "drop":
            for door in self._doors.pop(key, ()):
                door.close()
            # The warden waits: who takes the port next must find it free.
            self._control.send(DROPPED)
            return True
        protocol, targets = rest
        namespace = Namespace(self._elsewhere, fds.pop(0), len(fds))
        if do == "way":
            from pytest_nsbox.warden.outward import KINDS

            kind: type[Listener | Datagrams] = KINDS[protocol]
        else:
            kind = Listener if protocol == "tcp" else Datagrams
        self._doors.setdefault(key, []).extend([kind(self, socket(fileno=fd), namespace, targets) for fd in fds])
        return True

    # --- what others ask of the loop

    def watch(self, fd: int, events: int, action: Callable[[int], None]) -> None:
        """Have `action` run when there is one of `events`; none: stop that."""
        if fd in self._actions:
            if events:
                self._poll.modify(fd, events)
            else:
                self._poll.unregister(fd)
                del self._actions[fd]
                return
        elif events:
            self._poll.register(fd, events)
        else:
            return
        self._actions[fd] = action

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Have `action` run in so many seconds."""
        self._timed += 1
        heapq.heappush(self._timers, (time.monotonic() + seconds, self._timed, action))

    def close(self, sock: socket, *, reset: bool = False) -> None:
        """Close a socket; the other end of a connection sees an error if `reset`."""
        self.watch(sock.fileno(), 0, lambda _: None)
        if reset:
            sock.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("@ii", 1, 0))
        sock.close()


class Namespace:
    """A network namespace in which sockets are opened, as long as one of its `users` is there."""

    def __init__(self, elsewhere: Elsewhere, fd: int, users: int) -> None:
        self._elsewhere = elsewhere
        self._fd = fd
        self._users = users

    def open(self, address: str, kind: int) -> socket:
        """Return a socket of it that can reach `address`. Raises KernelError."""
        return socket(fileno=self._elsewhere.open(self._fd, lambda: [open_here(address, kind).detach()])[0])

    def leave(self) -> None:
        """One user less: a namespace that somebody holds stays."""
        self._users -= 1
        if not self._users:
            os.close(self._fd)


def open_here(address: str, kind: int) -> socket:
    """Return a socket of our own network namespace that can reach `address`."""
    return socket(AF_INET6 if ":" in address else AF_INET, kind | SOCK_NONBLOCK | SOCK_CLOEXEC)


class Listener:
    """A port for connections."""

    patience = _PATIENCE

    def __init__(self, loop: Forwarder, sock: socket, namespace: Namespace, targets: list[Address]) -> None:
        self.loop = loop
        self.namespace = namespace
        self.targets = targets
        self._socket = sock
        self._live: set[Dial | Pair] = set()
        self.closed = False
        # Until then a connection waits for the server.
        self.patient = time.monotonic() + self.patience
        self._accept_more()

    def _accept_more(self) -> None:
        if not self.closed:
            self.loop.watch(self._socket.fileno(), _READ, self._accept)

    def _accept(self, _events: int) -> None:
        try:
            fd, _ = self._socket._accept()  # type: ignore[attr-defined]  # what socket.accept is made of
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                # It would be there again at once.
                self.loop.watch(self._socket.fileno(), 0, self._accept)
                self.loop.after(_PAUSE, self._accept_more)
            return
        near = socket(fileno=fd)
        near.setblocking(False)
        dial = Dial(self, near, self.lead(near))
        self._live.add(dial)
        dial.attempt()

    def lead(self, near: socket) -> list[Address]:  # noqa: ARG002 - outward.py asks it
        """Return where the connection `near` is to go: the first of these that answers."""
        return self.targets

    def open(self, address: str) -> socket:
        """Return a socket for a connection to `address`. Raises KernelError or OSError."""
        return self.namespace.open(address, SOCK_STREAM)

    def go_on(self, old: Dial | Pair, new: Pair | None = None) -> None:
        """`old` has ended, or has become `new`."""
        self._live.discard(old)
        if new is not None:
            self._live.add(new)

    def close(self) -> None:
        """End every connection, and listen no more."""
        self.closed = True
        self.loop.close(self._socket)
        for live in list(self._live):
            live.abort()
        self.namespace.leave()


class Dial:
    """A connection that was accepted, while the one to the box is made."""

    def __init__(self, door: Listener, near: socket, targets: list[Address]) -> None:
        self._door = door
        self._near = near
        self._targets = targets
        self._far: socket | None = None
        self._next = 0
        self._ended = False

    def attempt(self) -> None:
        """Try the next address."""
        if self._ended:
            return
        address, port = self._targets[self._next]
        try:
            self._far = self._door.open(address)
        except (KernelError, OSError):
            self.abort()
            return
        code = self._far.connect_ex((address, port))
        if code in (0, errno.EINPROGRESS):
            self._door.loop.watch(self._far.fileno(), _WRITE, self._connected)
        else:
            self._failed(code)

    def _connected(self, _events: int) -> None:
        assert self._far is not None
        code = self._far.getsockopt(SOL_SOCKET, SO_ERROR)
        if code:
            self._failed(code)
            return
        self._door.loop.watch(self._far.fileno(), 0, self._connected)
        self._door.go_on(self, Pair(self._door, self._near, self._far))

    def _failed(self, code: int) -> None:
        assert self._far is not None
        self._door.loop.close(self._far)
        self._far = None
        self._next += 1
        if self._next < len(self._targets):
            self.attempt()
        elif code == errno.ECONNREFUSED and time.monotonic() < self._door.patient:
            self._next = 0
            self._door.loop.after(_PAUSE, self.attempt)
        else:
            self.abort()

    def abort(self) -> None:
        """It comes to nothing."""
        if self._ended:
            return
        self._ended = True
        self._door.loop.close(self._near, reset=True)
        if self._far is not None:
            self._door.loop.close(self._far)
        self._door.go_on(self)


class Pair:
    """Two connections; what comes on one goes out on the other."""

    def __init__(self, door: Listener, near: socket, far: socket) -> None:
        self._door = door
        self._sides = (near, far)
        # What is still to be sent to each side, and whether more can come from it.
        self._waiting = (bytearray(), bytearray())
        self._open = [True, True]
        self._ended = False
        self._actions = (lambda events: self._ready(0, events), lambda events: self._ready(1, events))
        self._want()

    def _want(self) -> None:
        for side in (0, 1):
            events = _READ if self._open[side] and len(self._waiting[1 - side]) < _MOST_WAITING else 0
            events |= _WRITE if self._waiting[side] else 0
            self._door.loop.watch(self._sides[side].fileno(), events, self._actions[side])

    def _ready(self, side: int, events: int) -> None:
        try:
            if events & ~_WRITE and self._open[side]:
                self._read(side)
            if events & _WRITE:
                self._write(side)
        except BlockingIOError:
            pass
        except OSError:
            self.abort()
            return
        if self._open == [False, False] and not any(self._waiting):
            self._end(reset=False)
        else:
            self._want()

    def _read(self, side: int) -> None:
        data = self._sides[side].recv(1 << 16)
        if data:
            self._waiting[1 - side].extend(data)
        else:
            self._open[side] = False
        self._write(1 - side)

    def _write(self, side: int) -> None:
        waiting = self._waiting[side]
        while waiting:
            try:
                del waiting[: self._sides[side].send(waiting)]
            except BlockingIOError:
                return
        if not self._open[1 - side]:
            try:
                self._sides[side].shutdown(SHUT_WR)
            except OSError:
                # It is gone altogether, which its next event tells.
                return

    def abort(self) -> None:
        """End both, as an error."""
        self._end(reset=True)

    def _end(self, *, reset: bool) -> None:
        if self._ended:
            return
        self._ended = True
        for side in self._sides:
            self._door.loop.close(side, reset=reset)
        self._door.go_on(self)


class Datagrams:
    """A port for datagrams: each sender has a socket of its own in the box's network, for the answers."""

    def __init__(self, loop: Forwarder, sock: socket, namespace: Namespace, targets: list[Address]) -> None:
        self._loop = loop
        self.socket = sock
        self.namespace = namespace
        self.targets = targets
        self._flows: dict[Any, tuple[socket, list[float]]] = {}
        self._closed = False
        loop.watch(sock.fileno(), _READ, self._receive)
        loop.after(_FLOW, self._expire)

    def take(self) -> tuple[bytes, Any]:
        """Return what has come, and what tells the flow that it belongs to."""
        return self.socket.recvfrom(1 << 16)

    def open(self, flow: Any) -> socket:  # noqa: ARG002 - outward.py asks it
        """Return a socket that sends where a flow leads. Raises KernelError or OSError."""
        far = self.namespace.open(self.targets[0][0], SOCK_DGRAM)
        far.connect((self.targets[0][0], self.targets[0][1]))
        return far

    def give_back(self, data: bytes, flow: Any) -> None:
        """Send an answer to who began the flow. Raises KernelError or OSError."""
        self.socket.sendto(data, flow)

    def _receive(self, _events: int) -> None:
        try:
            data, flow = self.take()
            if flow not in self._flows:
                self._begin(flow)
            far, seen = self._flows[flow]
            seen[0] = time.monotonic()
            far.send(data)
        except (KernelError, OSError):
            # As on any network, it is lost. (Nobody listens yet, for one: what was told of an earlier one comes here.)
            return

    def _begin(self, flow: Any) -> None:
        if len(self._flows) >= _MOST_FLOWS:
            self._forget(min(self._flows, key=lambda known: self._flows[known][1]))
        far = self.open(flow)
        self._flows[flow] = far, [time.monotonic()]
        self._loop.watch(far.fileno(), _READ, lambda _: self._answer(flow))

    def _answer(self, flow: Any) -> None:
        far, seen = self._flows[flow]
        try:
            seen[0] = time.monotonic()
            self.give_back(far.recv(1 << 16), flow)
        except (KernelError, OSError):
            return

    def _forget(self, flow: Any) -> None:
        self._loop.close(self._flows.pop(flow)[0])

    def _expire(self) -> None:
        if self._closed:
            return
        now = time.monotonic()
        for flow in [flow for flow, (_, seen) in self._flows.items() if now - seen[0] > _FLOW]:
            self._forget(flow)
        self._loop.after(_FLOW, self._expire)

    def close(self) -> None:
        """Listen no more."""
        self._closed = True
        for flow in list(self._flows):
            self._forget(flow)
        self._loop.close(self.socket)
        self.namespace.leave()


def run(control: int, elsewhere: Elsewhere, keep: tuple[int, ...]) -> NoReturn:
    """In the fork: be the forwarder until the other end of `control` is closed. Nothing of the warden's runs on."""
    try:
        process.die_with_parent()
        process.close_all_but((0, 1, 2, control, *keep))
        process.set_name("nsbox-forward")
        Forwarder(control, elsewhere).run()
    finally:
        os._exit(0)
