"""What client and warden say to each other: frozen records, each as 4 bytes of length (big endian) and the marshalled
tuple (name, field, …).

Both ends are the same interpreter and trust each other, so marshal does; json would bring re and enum, a third of what
a warden takes to start.

Descriptors travel beside the bytes (SCM_RIGHTS, unix(7)); a message that brings some says how many in its field `fds`,
so the order of arrival tells whose they are. A request has a `number`, which its answer repeats: answers may come in
another order than requests.
"""

from __future__ import annotations

import _socket
import marshal

from pytest_nsbox.kernel.rights import descriptors, rights, room
from pytest_nsbox.policy.record import fields, record
from pytest_nsbox.real import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, TypeAlias, TypeVar

    M = TypeVar("M")

_CHUNK = 65536
_ANCILLARY = room()


@record
class Configure:
    """What a session is made of; the first message, and again when paths become known.

    tmpdir  where the session's directory is made; this and the parent of cgroups count in the first message only
    shared  paths bound read-write into every box
    pool    how many boxes the client has made ahead
    volumes  directory of the named volumes that outlive sessions
    path    where the client's interpreter finds modules
    """

    tmpdir: str
    cgroup_parent: str | None
    shared: tuple[str, ...]
    pool: int
    volumes: str = ""
    path: tuple[str, ...] = ()


@record
class Connect:
    """Open a connection for containers (see wire.py); answered by Connected."""

    number: int


@record
class Make:
    """Make a box; answered by Made or Failed.

    image  what `policy.image.Image.for_box` returns, for a root that is not the host's
    """

    number: int
    spec: dict[str, Any]
    image: tuple[Any, ...] = ()


@record
class Refresh:
    """Bind what appeared on the host since the box was made; answered by Done or Failed."""

    number: int
    box: str


@record
class Read:
    """Read the counters of a box; answered by Counters."""

    number: int
    box: str


@record
class Compare:
    """List what changed in the box's root; answered by Changes."""

    number: int
    box: str


@record
class Kill:
    """Kill all processes of a box but its init; answered by Done."""

    number: int
    box: str


@record
class Release:
    """End a box. Its counters are wanted still, and copies of what `globs` match in it; answered by Released.

    artifacts  the host's directory that the copies go to; "" for none
    workdir    where relative globs start
    ends       False: the box goes on, and the next answer tells only of paths changed since, and of peaks where the
               kernel can begin them anew
    keep       the host's directory that copies of all changed files go to; "" for none
    """

    number: int
    box: str
    globs: tuple[str, ...] = ()
    artifacts: str = ""
    workdir: str = "/"
    ends: bool = True
    keep: str = ""


@record
class Drop:
    """End a box that nobody used; not answered."""

    box: str


@record
class Close:
    """End everything; answered by Closed when nothing is left."""

    number: int


@record
class Made:
    """A box is ready. The descriptors: its init's pidfd, then those to attach to its cgroups with, then its time
    namespace if `clock`, then its end of the line to the warden if `cpus` is not empty (see `viewed`), then `screens`
    of all boxes of the session (`cgroup_node.Session.open_screens`; with the first box only).

    namespaces  flags for setns
    bound       host paths (sockets, shared paths) that were bound when it was made, each with device and inode
    ids         rootless: what our own uid and gid are called in it; else nothing
    sockets     whether the box reaches the host's unix sockets at all
    cpus        what it is to run on, where /proc speaks of its limits
    """

    number: int
    box: str
    pid: int
    namespaces: int
    clock: bool
    bound: Mapping[str, Sequence[int]]
    ids: tuple[int, ...]
    sockets: bool
    cpus: tuple[int, ...]
    screens: int
    fds: int


@record
class Connected:
    """The client's end of a new connection is the descriptor."""

    number: int
    fds: int


@record
class Failed:
    """A request could not be fulfilled."""

    number: int
    text: str


@record
class Done:
    """What was asked is done."""

    number: int


@record
class Counters:
    """Counter files of the box's cgroups: name and text."""

    number: int
    texts: dict[str, str]


@record
class Changes:
    """(kind, path) of what differs from the host's root: A added, C changed, D deleted."""

    number: int
    changes: tuple[tuple[str, str], ...]


@record
class Released:
    """Counters at the end of the box; how many paths it changed; which files were copied out of it; what went wrong in
    copying.
    """

    number: int
    texts: dict[str, str]
    files_changed: int
    artifacts: tuple[str, ...]
    problems: tuple[str, ...]


@record
class Closed:
    """Everything is gone but what `problems` tells."""

    number: int
    problems: tuple[str, ...]


REQUESTS = (Configure, Connect, Make, Refresh, Read, Compare, Kill, Release, Drop, Close)
ANSWERS = (Made, Connected, Failed, Done, Counters, Changes, Released, Closed)
_KINDS: dict[str, type] = {kind.__name__: kind for kind in (*REQUESTS, *ANSWERS)}
Request: TypeAlias = "Configure | Connect | Make | Refresh | Read | Compare | Kill | Release | Drop | Close"
Answer: TypeAlias = "Made | Connected | Failed | Done | Counters | Changes | Released | Closed"


class ProtocolError(Exception):
    """The other side said something that is no message, or nothing any more."""


def encode(message: Request | Answer) -> bytes:
    """Return the bytes of `message`, with their number before them."""
    body = encode_body(message)
    return len(body).to_bytes(4, "big") + body


def encode_body(message: Request | Answer) -> bytes:
    """Return what `decode` takes."""
    return marshal.dumps((type(message).__name__, *[getattr(message, name) for name in fields(type(message))]))


def decode(body: bytes) -> Request | Answer:
    """Return the message of `body` (without the length); ProtocolError if it is none."""
    try:
        name, *values = marshal.loads(body)
        message: Request | Answer = _KINDS[name](*values)
    except (ValueError, KeyError, TypeError, EOFError) as error:
        raise ProtocolError(f"not a message: {body[:80]!r} ({error})") from None
    return message


def expect(message: object, kind: type[M]) -> M:
    """Return `message` if it is of `kind`, else raise ProtocolError."""
    if isinstance(message, kind):
        return message
    raise ProtocolError(f"expected {kind.__name__}, got {type(message).__name__}")


class Channel:
    """One end of the socket pair."""

    def __init__(self, sock: _socket.socket) -> None:
        self.sock = sock
        self._buffer = bytearray()
        # The descriptors of messages that have not been taken yet, message by message.
        self._fds: list[tuple[int, ...]] = []

    def send(self, message: Request | Answer, fds: Sequence[int] = ()) -> None:
        """Send all of `message`; OSError (a broken pipe, for one) if the other side is gone."""
        data = memoryview(encode(message))
        if fds:
            sent = self.sock.sendmsg([data], rights(fds), _socket.MSG_NOSIGNAL)
            data = data[sent:]
        while data:
            data = data[self.sock.send(data, _socket.MSG_NOSIGNAL) :]

    def receive(self) -> tuple[Request | Answer, tuple[int, ...]]:
        """Wait for the next message; return it with its descriptors. ProtocolError at the end of the stream."""
        while (found := self.pop()) is None:
            if not self.fill():
                raise ProtocolError("the other side closed the connection")
        return found

    def fill(self, flags: int = 0) -> bool:
        """Read what has come, at least something unless `flags` say otherwise; False at the end of the stream."""
        data, ancillary, came, _ = self.sock.recvmsg(_CHUNK, _ANCILLARY, flags | _socket.MSG_CMSG_CLOEXEC)
        fds = descriptors(ancillary)
        # The kernel ends a read where descriptors of a second message would come.
        if came & _socket.MSG_CTRUNC:
            # There was no room for all, so nobody knows what those are that came.
            for fd in fds:
                os.close(fd)
            self._fds.append(())
        elif fds:
            self._fds.append(tuple(fds))
        self._buffer += data
        return bool(data)

    def pop(self) -> tuple[Request | Answer, tuple[int, ...]] | None:
        """Take the next whole message out of what was read, or return None.

        It comes with all of its descriptors, or without any if this process had no room for them (RLIMIT_NOFILE).
        ProtocolError if the other side announced some and sent none.
        """
        buffer = self._buffer
        if len(buffer) < 4:
            return None
        end = 4 + int.from_bytes(buffer[:4], "big")
        if len(buffer) < end:
            return None
        message = decode(bytes(buffer[4:end]))
        del buffer[:end]
        if not (isinstance(message, (Made, Connected)) and message.fds):
            return message, ()
        if not self._fds:
            raise ProtocolError(f"{type(message).__name__} came without its descriptors")
        return message, self._fds.pop(0)

    def close(self) -> None:
        """Close this end."""
        for fds in self._fds:
            for fd in fds:
                os.close(fd)
        self._fds.clear()
        self.sock.close()
