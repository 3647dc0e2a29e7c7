"""The warden's process: one thread, one loop over the client's socket and the inits' pidfds.

What somebody waits for goes first: counters and ends of boxes, then new boxes one at a time, then taking away what is left of old ones.
The life of a box here:

    Make -> Made -> (Read, Compare, Refresh)* -> Release -> Released
                                               -> Drop
    its init is killed (mostly by the client itself, at once) -> pidfd readable -> reaped -> cgroups and layers removed

The warden never waits for an init of a box that was handed out: the kernel does not let process 1 of a pid namespace go while a member that
pytest must reap is a zombie.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import sys
import time
from _socket import MSG_DONTWAIT
from _socket import socket as RawSocket
from collections import deque

from pytest_nsbox.kernel import files, process
from pytest_nsbox.policy.errors import BoxFailed, KernelError
from pytest_nsbox.policy.plan import Plan, make_plan
from pytest_nsbox.policy.record import replace
from pytest_nsbox.policy.spec import Spec
from pytest_nsbox.warden import messages as m
from pytest_nsbox.warden.box import Box, make_box
from pytest_nsbox.warden.doors import Doors
from pytest_nsbox.warden.session import Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

# How long boxes may take to die when everything ends: a process in an uninterruptible wait can take for ever.
_PATIENCE = 10.0


class Server:
    """The state of a warden."""

    def __init__(self, channel: m.Channel, doors: Doors) -> None:
        self.channel = channel
        self.doors = doors
        self.session: Session | None = None
        self.failure = ""
        self.boxes: dict[str, Box] = {}
        self.plans: dict[Spec, Plan] = {}
        self.wanted: deque[m.Make] = deque()
        self.dead: deque[Box] = deque()
        self.made = 0
        self.closing: m.Close | None = None
        self.poll = select.epoll()
        self.by_pidfd: dict[int, Box] = {}
        self.problems: list[str] = []

    def run(self) -> None:
        """Serve until the client says Close or is gone."""
        self.poll.register(self.channel.sock.fileno(), select.EPOLLIN)
        alive = True
        while alive and self.closing is None:
            busy = bool(self.wanted or self.dead)
            for fd, _ in self.poll.poll(0 if busy else None):
                if fd in self.by_pidfd:
                    self._reap(self.by_pidfd[fd])
                else:
                    alive = self._listen()
            try:
                if alive and self.wanted:
                    self._make(self.wanted.popleft())
                elif self.dead:
                    self._take_away(self.dead.popleft())
            except OSError:
                # The answer found nobody.
                alive = False
        self._end()

    def _listen(self) -> bool:
        """Read what the client says and do it; False if it is gone."""
        try:
            if not self.channel.fill(MSG_DONTWAIT):
                return False
            while (found := self.channel.pop()) is not None:
                _SERVE[type(found[0])](self, found[0])
        except (OSError, m.ProtocolError):
            return False
        return True

    def _configure(self, request: m.Configure) -> None:
        if self.session is None:
            self.session = Session(self.doors, request.tmpdir, request.cgroup_parent)
            try:
                self.session.open()
            except (KernelError, BoxFailed, OSError) as error:
                self.failure = str(error)
        facts = self.session.facts
        self.session.facts = replace(facts, shared=tuple(request.shared))
        self.plans.clear()

    def _make(self, request: m.Make) -> None:
        if self.session is None or self.failure:
            self.channel.send(m.Failed(request.number, self.failure or "the warden was not configured"))
            return
        spec = Spec.from_json(request.spec)
        self.made += 1
        try:
            plan = self.plans.get(spec)
            if plan is None:
                plan = self.plans[spec] = make_plan(spec, self.session.facts)
            box = make_box(self.session, f"box-{self.made}", spec, plan)
        except (KernelError, BoxFailed, OSError) as error:
            self.channel.send(m.Failed(request.number, str(error)))
            return
        self.boxes[box.name] = box
        self.by_pidfd[box.pidfd] = box
        self.poll.register(box.pidfd, select.EPOLLIN)
        fds = (box.pidfd, *box.node.attach)
        self.channel.send(m.Made(request.number, box.name, box.pid, box.namespaces, False, box.bound, {}, len(fds)), fds)
        box.node.close_fds()

    def _read(self, request: m.Read) -> None:
        self.channel.send(m.Counters(request.number, self.boxes[request.box].node.read()))

    def _compare(self, request: m.Compare) -> None:
        self.channel.send(m.Changes(request.number, ()))

    def _refresh(self, request: m.Refresh) -> None:
        self.channel.send(m.Refreshed(request.number))

    def _release(self, request: m.Release) -> None:
        box = self.boxes[request.box]
        self.channel.send(m.Released(request.number, box.node.read(), 0, (), ()))
        self._let_go(box)

    def _drop(self, request: m.Drop) -> None:
        self._let_go(self.boxes[request.box])

    def _close(self, request: m.Close) -> None:
        self.closing = request

    def _let_go(self, box: Box) -> None:
        """Nobody will ask for this box again: kill its init, which takes every process of the box with it."""
        box.released = True
        if box.reaped:
            self._bury(box)
        else:
            process.kill(box.pidfd)

    def _reap(self, box: Box) -> None:
        if process.reap(box.pidfd):
            self.poll.unregister(box.pidfd)
            del self.by_pidfd[box.pidfd]
            os.close(box.pidfd)
            os.close(box.control)
            box.reaped = True
            if box.released:
                self._bury(box)

    def _bury(self, box: Box) -> None:
        del self.boxes[box.name]
        self.dead.append(box)

    def _take_away(self, box: Box) -> None:
        for step in (box.node.remove, lambda: files.remove_tree(box.scratch)):
            try:
                step()
            except (KernelError, BoxFailed, OSError) as error:
                self.problems.append(str(error))

    def _end(self) -> None:
        """Kill everything, take everything away, and tell the client if it is still there."""
        for box in list(self.boxes.values()):
            self._let_go(box)
        deadline = time.monotonic() + _PATIENCE
        while self.by_pidfd and (rest := deadline - time.monotonic()) > 0:
            for fd, _ in self.poll.poll(rest):
                if fd in self.by_pidfd:
                    self._reap(self.by_pidfd[fd])
                elif self.closing is None or not self._drain():
                    self.poll.unregister(fd)
        self.dead.extend(self.boxes.values())
        while self.dead:
            self._take_away(self.dead.popleft())
        if self.session is not None:
            self.problems += self.session.close()
        if self.closing is not None:
            try:
                self.channel.send(m.Closed(self.closing.number, tuple(self.problems)))
            except OSError:
                pass

    def _drain(self) -> bool:
        """Throw away what the client still says; False if it is gone."""
        try:
            return self.channel.fill(MSG_DONTWAIT)
        except OSError:
            return False


_SERVE: dict[type, Callable[[Server, Any], None]] = {
    m.Configure: Server._configure,
    m.Make: lambda server, request: server.wanted.append(request),
    m.Refresh: Server._refresh,
    m.Read: Server._read,
    m.Compare: Server._compare,
    m.Release: Server._release,
    m.Drop: Server._drop,
    m.Close: Server._close,
}


def main(fd: int) -> None:
    """Be a warden for the client at the other end of the socket `fd`."""
    # Ctrl-C is for pytest; the warden ends when pytest does.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    os.setsid()
    process.set_name("nsbox-warden")
    channel = m.Channel(RawSocket(fileno=fd))
    # Inits are forks of this process: what a collection would touch, each of them would have to copy.
    gc.disable()
    gc.freeze()
    Server(channel, Doors()).run()
    sys.stdout.flush()
    os._exit(0)
