"""What an attempt is, where it is made, and what comes of it."""

from __future__ import annotations

import errno
import json
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.escapes.system import MS_PRIVATE, MS_REC, NEWNS, mount, umount, unshare

# An ordinary user of the host; no entry in /etc/passwd is needed.
USER = 54321
NETS = ("host", "none")
WORKED = "worked"
PLACE = "NSBOX_ESCAPE_PLACE"
PATIENCE = 20  # seconds for one attempt


class HeldError(Exception):
    """The calls succeeded and led nowhere: the text says where they ended."""


@dataclass(frozen=True)
class Place:
    """Where an attempt is made, and what of the host's it goes for. All numbers and paths are the host's.

    victim    a process of root's, with a secret in its environment; `user_victim` one of an ordinary user
    canary    a file of root's in `directory`, on a real file system and in no path that boxes share
    shared    a directory of root's that boxes share (below the base temp)
    device    a block device node beside the canary, `shared_device` one in `shared`: loop devices of the test's own,
              with an ext4 image in them
    handles   of the canary and of its directory, for open_by_handle_at(2): type and bytes
    groups    {hierarchy: directory of a cgroup that the test made}; there, root/ holds the victim, user/ the other one
    socket, abstract, port, address  what the host listens on: a path, an abstract name, TCP on 127.0.0.1, and the
              address of another interface ("" if there is none)
    keys      serial numbers of a key of root's and of one of the ordinary user's
    fds       descriptors that an outer fixture opened: the canary (to be read), its directory, a socket
    """

    inside: bool
    net: str = "host"
    victim: int = 0
    user_victim: int = 0
    canary: str = ""
    directory: str = ""
    shared: str = ""
    device: str = ""
    shared_device: str = ""
    handles: tuple[tuple[int, str], ...] = ()
    cgroup_version: int = 1
    groups: dict[str, str] = field(default_factory=dict)
    socket: str = ""
    abstract: str = ""
    port: int = 0
    address: str = ""
    keys: tuple[int, ...] = ()
    fds: dict[str, int] = field(default_factory=dict)

    @property
    def first(self) -> int:
        """Process 1 of the box; outside the victim, since not every machine's process 1 is to be played with."""
        return 1 if self.inside else self.victim

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Place:
        values: dict[str, Any] = json.loads(text)
        values["handles"] = tuple((kind, data) for kind, data in values["handles"])
        values["keys"] = tuple(values["keys"])
        return cls(**values)


@dataclass(frozen=True)
class Attempt:
    """One way out.

    refused  what comes of it in a box: {net: name of an errno, or the text of a HeldError}
    box      further marker keys of the box
    alone    whether it may leave the box as no other attempt should find it
    absent   names of errnos that say outside: this kernel has no such thing
    open     why it may work in a box, on some machines: a known hole
    """

    name: str
    function: Callable[[Place], None]
    refused: dict[str, str]
    box: dict[str, Any]
    alone: bool
    absent: frozenset[str]
    open: str | None

    @property
    def apart(self) -> bool:
        """Whether it has a box to itself."""
        return self.alone or bool(self.box)

    def run(self, place: Place) -> str:
        """Make the attempt in a process of its own; return WORKED, the name of an errno, or where it ended."""
        return in_a_process(lambda: self._outcome(place))

    def _outcome(self, place: Place) -> str:
        if not place.inside:
            # Whatever an attempt mounts or unmounts outside is gone with its process.
            unshare(NEWNS)
            mount("none", "/", flags=MS_REC | MS_PRIVATE)
        try:
            self.function(place)
        except HeldError as held:
            return str(held)
        except OSError as error:
            return errno.errorcode.get(error.errno or 0, repr(error))
        return WORKED


ATTEMPTS: dict[str, Attempt] = {}


def attempt(
    refused: str | None = None,
    *,
    host: str | None = None,
    none: str | None = None,
    box: dict[str, Any] | None = None,
    alone: bool = False,
    absent: tuple[str, ...] = (),
    open_because: str | None = None,
) -> Callable[[Callable[[Place], None]], Callable[[Place], None]]:
    """Register a function as an attempt.

    refused  what comes of it in every box; or `host`, `none`: in boxes with that `net` only
    """

    def register(function: Callable[[Place], None]) -> Callable[[Place], None]:
        by_net = {"host": host or refused, "none": none or refused}
        results = {net: result for net, result in by_net.items() if result is not None}
        name = function.__name__
        assert name not in ATTEMPTS
        ATTEMPTS[name] = Attempt(name, function, results, box or {}, alone, frozenset(absent), open_because)
        return function

    return register


def in_a_process(function: Callable[[], str]) -> str:
    """Call `function` in a fork and return what it returned: it may unshare, chroot and change ids as it likes."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(PATIENCE)
            try:
                text = function()
            except BaseException as error:  # noqa: BLE001 - a fork of a test must not run on in it
                text = f"broken: {type(error).__name__}: {error}"
            os.write(writer, text.encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        text = file.read().decode()
    _, status = os.waitpid(pid, 0)
    return text or f"ended by status {status}"


@contextmanager
def mounted(source: str, fstype: str, data: str | None = None) -> Iterator[str]:
    """A new mount, for a while."""
    with tempfile.TemporaryDirectory() as place:
        mount(source, place, fstype, 0, data)
        try:
            yield place
        finally:
            umount(place)
