"""What boxes that ended leave, taken away beside the warden: it takes waiting, and others wait for the warden.

An overlay that is told to forget its lookups, and a tree that is unmounted, wait for an RCU grace period, as long as a
box takes to make; files of a test that wrote many take time to delete. So from the first few boxes on a process of its
own does that, forked of the warden; what that cannot do, or not at once, the warden does.
"""

from __future__ import annotations

import marshal
import os
from _socket import MSG_CMSG_CLOEXEC

from pytest_nsbox.kernel import process
from pytest_nsbox.kernel.cgroup_tree import Group, remove_all
from pytest_nsbox.kernel.line import be_patient, line
from pytest_nsbox.kernel.rights import MOST, descriptors, rights, room
from pytest_nsbox.kernel.signals import signal
from pytest_nsbox.policy.errors import BoxFailed, KernelError
from pytest_nsbox.policy.record import fields
from pytest_nsbox.warden.tree import Remains

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Callable, Sequence
    from typing import Any

    from pytest_nsbox.warden.box import Box
    from pytest_nsbox.warden.doors import Doors
    from pytest_nsbox.warden.server import Server
    from pytest_nsbox.warden.tree import Tree

    # What to do when it is done, and in its place if it was not.
    Waiting = tuple[Callable[[str], None], Callable[[], None]]

_FROM = 8  # boxes: fewer are not worth a process
_MOST = 16  # requests at once
_LARGEST = 1 << 16  # bytes of a request
_PATIENCE = 20.0  # seconds, at the end: to remove a group can take two, and somebody may have stopped the process


class Leavings:
    """What is done with the leavings of boxes; `problems` tells what failed."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._janitor = Janitor(server.doors, server.watch, server.forget)

    def bury(self, box: Box) -> None:
        """Have the groups of an ended box removed, and its tree made ready for another one, or removed."""
        server, node, tree = self._server, box.node, box.tree
        if server.made >= _FROM:
            self._janitor.start()
        node.close_fds()
        self._janitor.ask("groups", node.paths(), (), self._told, lambda: server.waste.append(node.remove))
        if server.session is None or not server.session.is_as_new(tree):
            self._remove(tree)
            return
        arguments = [len(tree.overlays), tree.place]
        self._janitor.ask(
            "renew", arguments, tree.overlays, lambda error: self._renewed(tree, error), lambda: self._renew(tree)
        )

    def close(self) -> None:
        """Wait until all is done that was begun; what comes now is the warden's to do."""
        self._janitor.close()

    def reap(self) -> None:
        """Wait for the end of who did it."""
        self._janitor.reap()

    def _told(self, error: str) -> None:
        if error:
            self._server.problems.append(error)

    def _renew(self, tree: Tree) -> None:
        try:
            tree.renew()
        except KernelError as error:
            self._renewed(tree, str(error))
        else:
            self._renewed(tree, "")

    def _renewed(self, tree: Tree, error: str) -> None:
        session, config, containers = self._server.session, self._server.config, self._server.containers
        self._told(error)
        if error or session is None or config is None:
            self._remove(tree)
            return
        # Those of the boxes that are ready, of the one in use, and of two that are with the process.
        most = config.pool + 3 + (containers.at_once if containers is not None else 0)
        if (old := session.keep(tree, most)) is not None:
            self._remove(old)

    def _remove(self, tree: Tree) -> None:
        remains = tree.leave()
        self._janitor.ask(
            "tree",
            [getattr(remains, name) for name in fields(Remains)],
            (),
            self._told,
            lambda: self._server.waste.append(tree.remove),
        )


class Janitor:
    """The warden's end of the process.

    watch   has a function called when a descriptor is readable
    forget  ends that, and closes the descriptor
    """

    def __init__(
        self, doors: Doors, watch: Callable[[int, Callable[[], None]], None], forget: Callable[[int], None]
    ) -> None:
        self._doors = doors
        self._watch = watch
        self._forget = forget
        self._sock: socket | None = None
        self.pid = 0
        self._killed = 0
        self.patience = _PATIENCE
        self._number = 0
        self._waiting: dict[int, Waiting] = {}

    def start(self) -> None:
        """Have the process, from now on; a second call does nothing, also after `close`."""
        if self.pid:
            return
        ours, theirs = line()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                # Nobody may take us for the warden, whose end of the client's socket and of inits' lines we have.
                self._doors.close_all_but((0, 1, 2, theirs.fileno()))
                process.set_name("nsbox-janitor")
                _serve(theirs, self._doors)
            finally:
                os._exit(0)
        theirs.close()
        self._sock = ours
        self._watch(ours.fileno(), self._answered)

    def ask(
        self,
        work: str,
        arguments: list[Any],
        fds: Sequence[int],
        done: Callable[[str], None],
        instead: Callable[[], None],
    ) -> None:
        """Have `work` done (a key of `_WORK`), and `done` called with what went wrong in it, or "". If nobody can do
        it, call `instead`.
        """
        if self._sock is None or len(self._waiting) >= _MOST or len(fds) > MOST:
            instead()
            return
        self._number += 1
        try:
            self._sock.sendmsg([marshal.dumps((self._number, work, arguments))], rights(fds))
        except OSError:
            # It is gone, or cannot take as much.
            instead()
            return
        self._waiting[self._number] = done, instead

    def close(self) -> None:
        """Wait until everything is done, and kill the process; what it does not get done in time is ours to do."""
        if self._sock is not None:
            be_patient(self._sock, self.patience)
        while self._sock is not None and self._waiting:
            self._answered()
        if self._sock is not None:
            self._end()
        self.pid = self.pid or -1

    def reap(self) -> None:
        """Wait for the end of the process, once it was killed."""
        if self._killed:
            os.waitpid(self._killed, 0)
            self._killed = 0

    def _answered(self) -> None:
        assert self._sock is not None
        try:
            answer = self._sock.recv(_LARGEST)
        except OSError:
            answer = b""
        if not answer:
            self._end()
            self.reap()
            return
        number, error = marshal.loads(answer)
        self._waiting.pop(number)[0](error)

    def _end(self) -> None:
        """Nobody is there any more, or nothing is to be done: what was not done we do."""
        sock, self._sock = self._sock, None
        assert sock is not None
        self._forget(sock.detach())
        # A stopped process, too, ends of this.
        os.kill(self.pid, signal.SIGKILL)
        self._killed = self.pid
        if not self._waiting:
            # Nothing of ours depends on its end.
            return
        self.reap()
        waiting, self._waiting = self._waiting, {}
        for _, instead in waiting.values():
            instead()


def _serve(sock: socket, doors: Doors) -> None:
    while True:
        data, ancillary, _, _ = sock.recvmsg(_LARGEST, room(), MSG_CMSG_CLOEXEC)
        if not data:
            return
        fds = descriptors(ancillary)
        number, work, arguments = marshal.loads(data)
        error = ""
        try:
            _WORK[work](doors, fds, *arguments)
        except (KernelError, BoxFailed, OSError) as problem:
            error = str(problem)
        finally:
            for fd in fds:
                os.close(fd)
        sock.send(marshal.dumps((number, error)))


def _renew(doors: Doors, overlays: list[int], expected: int, place: str) -> None:
    if len(overlays) != expected:
        raise BoxFailed(f"{place}: {len(overlays)} descriptors came of {expected}")
    for overlay in overlays:
        doors.forget_lookups(overlay, place)


def _remove_groups(doors: Doors, _: list[int], *paths: str) -> None:
    remove_all([Group(path, doors.cgroup_files) for path in paths])


def _remove_tree(doors: Doors, _: list[int], *remains: Any) -> None:
    Remains(*remains).remove(doors)


_WORK: dict[str, Callable[..., None]] = {"renew": _renew, "groups": _remove_groups, "tree": _remove_tree}
