"""The warden's process: one thread, one loop over the client's socket and the inits' pidfds.

What somebody waits for goes first: counters and ends of boxes, then new boxes one at a time, then taking away what is
left of old ones. The life of a box here:

    Make -> Made -> (Read, Compare, Refresh, Kill)* -> Release -> Released
                                                     -> Drop
    its init is killed (mostly by the client itself, at once) -> pidfd readable -> reaped -> cgroups removed, tree kept
    or removed

The warden never waits for an init of a box that was handed out: the kernel does not let process 1 of a pid namespace go
while a member that pytest must reap is a zombie.
"""

from __future__ import annotations

import gc
import marshal
import os
import select
import time
from _socket import MSG_DONTWAIT, socket

from pytest_nsbox.kernel import process
from pytest_nsbox.kernel.signals import signal
from pytest_nsbox.policy.errors import BoxFailed, KernelError
from pytest_nsbox.policy.plan import Plan, make_plan
from pytest_nsbox.policy.spec import Spec
from pytest_nsbox.warden import directory, enter
from pytest_nsbox.warden import messages as m
from pytest_nsbox.warden.box import Box, Undo, are_deserted, begin_box, finish_box
from pytest_nsbox.warden.changes import find_changes, in_order
from pytest_nsbox.warden.doors import Doors
from pytest_nsbox.warden.janitor import Leavings
from pytest_nsbox.warden.late import find_late
from pytest_nsbox.warden.session import Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from pytest_nsbox.warden.containers import Containers

# How long boxes may take to die when everything ends: a process in an uninterruptible wait can take for ever.
_PATIENCE = 10.0
_MOST_WASTE = 12
COLLECT_EVERY = 64  # boxes


class Server:
    """The state of a warden."""

    def __init__(self, channel: m.Channel, doors: Doors, parent: int = -1) -> None:
        self.channel = channel
        # The client's pidfd: a process that it forked may hold its end of the socket for longer than it lives.
        self.parent = parent
        self.doors = doors
        self.config: m.Configure | None = None
        self.session: Session | None = None
        self.failure = "the warden was not configured"
        self.boxes: dict[str, Box] = {}
        # By spec, or by spec and image.
        self.plans: dict[object, Plan] = {}
        # Boxes to make, of tests and of containers.
        self.wanted: list[Callable[[], None]] = []
        # From the first client that wants containers on.
        self.containers: Containers | None = None
        # What is left to remove of boxes that have ended.
        self.waste: list[Callable[[], None]] = []
        self.made = 0
        # Boxes whose inits have not reported yet, by the descriptor that they report to.
        self.unfinished: dict[int, Undo] = {}
        self.closing: m.Close | None = None
        self.poll = select.epoll()
        # What is to be done when a descriptor becomes readable.
        self.watched: dict[int, Callable[[], None]] = {}
        self.problems: list[str] = []
        self.leavings = Leavings(self)

    def run(self) -> None:
        """Serve until the client says Close or is gone, then remove everything."""
        try:
            self._serve()
        finally:
            self._end()

    def _serve(self) -> None:
        control = self.channel.sock.fileno()
        self.poll.register(control, select.EPOLLIN)
        alive = True
        if self.parent >= 0:
            self.poll.register(self.parent, select.EPOLLIN)
        while alive and self.closing is None:
            ready = self.poll.poll(0 if self.wanted or self.waste else self._rest())
            try:
                if self.containers is not None:
                    self.containers.tick()
                # An action may close descriptors of later ones, and open others with their numbers.
                for fd, action in [(fd, self.watched.get(fd)) for fd, _ in ready]:
                    if action is not None and self.watched.get(fd) is action:
                        action()
                if any(fd == self.parent for fd, _ in ready):
                    alive = False
                elif any(fd == control for fd, _ in ready):
                    alive = self._listen()
                elif self.wanted:
                    self.wanted.pop(0)()
                # Boxes to make must not keep us from removing old ones for ever.
                if self.waste and (not self.wanted or len(self.waste) > _MOST_WASTE):
                    self._attempt(self.waste.pop(0))
            except OSError:
                # The answer found nobody.
                alive = False

    def _rest(self) -> float | None:
        return self.containers.rest() if self.containers is not None else None

    def watch(self, fd: int, action: Callable[[], None]) -> None:
        """Have `action` run whenever `fd` is readable."""
        self.poll.register(fd, select.EPOLLIN)
        self.watched[fd] = action

    def unwatch(self, fd: int) -> None:
        """Stop looking at `fd`."""
        self.poll.unregister(fd)
        del self.watched[fd]

    def forget(self, fd: int) -> None:
        """Stop looking at `fd`, and close it."""
        self.unwatch(fd)
        os.close(fd)

    def _connect(self, request: m.Connect) -> None:
        """Give the client a connection on which it can ask for containers."""
        if self.containers is None:
            from pytest_nsbox.warden.containers import Containers

            self.containers = Containers(self)
        theirs = self.containers.connect()
        try:
            self.channel.send(m.Connected(request.number, 1), (theirs,))
        finally:
            os.close(theirs)

    def _listen(self) -> bool:
        """Read what the client says and do it; False if it is gone."""
        try:
            if not self.channel.fill(MSG_DONTWAIT):
                return False
            while (found := self.channel.pop()) is not None:
                request = found[0]
                try:
                    _SERVE[type(request)](self, request)
                except (KernelError, BoxFailed) as error:
                    self.channel.send(m.Failed(getattr(request, "number", 0), str(error)))
        except m.ProtocolError:
            return False
        return True

    def _box(self, request: m.Read | m.Refresh | m.Compare | m.Kill | m.Release) -> Box:
        try:
            return self.boxes[request.box]
        except KeyError:
            raise BoxFailed(f"there is no box {request.box}") from None

    def _configure(self, request: m.Configure) -> None:
        self.config = request
        if self.session is not None:
            return
        self.session = Session(self.doors, request.tmpdir, request.cgroup_parent, request.volumes)
        try:
            self.session.open()
            self.failure = ""
        except (KernelError, BoxFailed, OSError) as error:
            self.failure = str(error)
        # Once there is nothing else to do.
        self.waste.append(lambda: self._sweep(request.tmpdir))

    def _sweep(self, tmpdir: str) -> None:
        """Remove what dead sessions left, in a process of its own: it may have much to do."""
        pid = os.fork()
        if pid == 0:
            try:
                self.channel.close()
                directory.sweep(tmpdir)
            finally:
                os._exit(0)
        pidfd = process.open_pidfd(pid)
        self.watch(pidfd, lambda: self._swept(pidfd))

    def _swept(self, pidfd: int) -> None:
        if process.reap(pidfd):
            self.forget(pidfd)

    def _make(self, request: m.Make) -> None:
        try:
            if self.failure or self.session is None or self.config is None:
                raise BoxFailed(self.failure)
            spec = Spec.from_json(request.spec)
            key = (spec, request.image) if request.image else spec
            plan = self.plans.get(key)
            if plan is None:
                image = self.session.images.facts(request.image) if request.image else None
                plan = self.plans[key] = make_plan(spec, self.session.facts, image)
            self.made += 1
            box, undo = begin_box(self.session, f"box-{self.made}", spec, plan, self.config.shared)
        except (KernelError, BoxFailed, OSError) as error:
            self.channel.send(m.Failed(request.number, str(error)))
            return
        self.await_init(box, undo, lambda error: self._tell_made(request, box, error))

    def await_init(self, box: Box, undo: Undo, done: Callable[[Exception | None], None]) -> None:
        """Finish a box that was begun when its init has reported; call `done` with what went wrong, or None."""
        # While the init gets ready there may be somebody to serve.
        self.unfinished[box.control] = undo
        self.watch(box.control, lambda: self._finish(box, undo, done))

    def _finish(self, box: Box, undo: Undo, done: Callable[[Exception | None], None]) -> None:
        self.unwatch(box.control)
        del self.unfinished[box.control]
        try:
            assert self.session is not None
            finish_box(self.session, box, undo)
        except (KernelError, BoxFailed, OSError) as error:
            done(error)
            return
        self.boxes[box.name] = box
        self.watch(box.pidfd, lambda: self.reap(box))
        done(None)

    def _tell_made(self, request: m.Make, box: Box, error: Exception | None) -> None:
        if error is not None:
            self.channel.send(m.Failed(request.number, str(error)))
            return
        assert self.session is not None
        screens = self.session.take_screens()
        view = box.view
        line = (view.theirs,) if view is not None else ()
        fds = (box.pidfd, *box.node.attach, *((box.clock,) if box.clock >= 0 else ()), *line, *screens)
        made = m.Made(
            request.number,
            box.name,
            box.pid,
            box.namespaces,
            box.clock >= 0,
            box.tree.bound,
            box.tree.plan.ids or (),
            box.tree.plan.sockets,
            view.cpus if view is not None else (),
            len(screens),
            len(fds),
        )
        self.channel.send(made, fds)
        box.node.close_fds()
        if view is not None:
            view.follow(self.watch, self.forget)

    def _read(self, request: m.Read) -> None:
        self.channel.send(m.Counters(request.number, self._box(request).node.read()))

    def _compare(self, request: m.Compare) -> None:
        self.channel.send(m.Changes(request.number, tuple(self.changes_of(self._box(request)))))

    def changes_of(self, box: Box) -> list[tuple[str, str]]:
        """Return (kind, path) of what differs from the root that the box began with."""
        return in_order(find_changes(box.tree))

    def _refresh(self, request: m.Refresh) -> None:
        box = self._box(request)
        if self.session is not None and self.config is not None:
            now = find_late(self.config.shared, sockets=box.tree.plan.sockets)
            enter.bind_late(self.session, box, now)
        self.channel.send(m.Done(request.number))

    def _kill(self, request: m.Kill) -> None:
        enter.kill_all(self._box(request))
        self.channel.send(m.Done(request.number))

    def _release(self, request: m.Release) -> None:
        box = self._box(request)
        texts = box.node.read()
        if ((request.globs and request.artifacts) or request.keep) and not box.reaped:
            self._copy_out(request, box, texts)
            return
        self._released(request, box, texts, (), ())

    def _released(
        self, request: m.Release, box: Box, texts: dict[str, str], artifacts: tuple[str, ...], problems: tuple[str, ...]
    ) -> None:
        changed = {hash(change) for change in find_changes(box.tree)}
        self.channel.send(m.Released(request.number, texts, len(changed - box.seen), artifacts, problems))
        if request.ends:
            self.let_go(box)
        else:
            box.seen = changed
            box.node.reset_peaks()

    def _copy_out(self, request: m.Release, box: Box, texts: dict[str, str]) -> None:
        """Copy in a process of its own, since it enters the box; the answer follows when it is done."""
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                self.channel.close()
                from pytest_nsbox.warden.artifacts import copy_out

                report = copy_out(self.doors, box, request)
                with open(writer, "wb") as file:
                    marshal.dump(report, file)
            finally:
                os._exit(0)
        os.close(writer)
        parts: list[bytes] = []

        def go_on() -> None:
            part = os.read(reader, 65536)
            parts.append(part)
            if part:
                return
            self.forget(reader)
            os.waitpid(pid, 0)
            copied, problems = marshal.loads(b"".join(parts)) if any(parts) else ((), ("copying failed",))
            self._released(request, box, texts, tuple(copied), tuple(problems))

        self.watch(reader, go_on)

    def _drop(self, request: m.Drop) -> None:
        if request.box in self.boxes:
            self.let_go(self.boxes[request.box])

    def _close(self, request: m.Close) -> None:
        self.closing = request

    def let_go(self, box: Box) -> None:
        """Nobody will ask for this box again: kill its init, which takes every process of the box with it."""
        box.released = True
        if box.reaped:
            self._bury(box)
        else:
            process.kill(box.pidfd)

    def reap(self, box: Box) -> None:
        """Collect the box's init if it has ended."""
        if process.reap(box.pidfd):
            self.forget(box.pidfd)
            for fd in (box.control, box.clock):
                if fd >= 0:
                    os.close(fd)
            box.reaped = True
            if box.view is not None:
                box.view.close()
            if box.released:
                self._bury(box)

    def _bury(self, box: Box) -> None:
        del self.boxes[box.name]
        self.leavings.bury(box)
        if self.made % COLLECT_EVERY == 0:
            # The automatic collection is off: see main().
            gc.collect()

    def _attempt(self, step: Callable[[], None]) -> None:
        try:
            step()
        except (KernelError, BoxFailed, OSError) as error:
            self.problems.append(str(error))

    def _end(self) -> None:
        """Kill everything, take everything away, and tell the client if it is still there."""
        if self.containers is not None:
            self.containers.close()
        for control, undo in self.unfinished.items():
            self.poll.unregister(control)
            del self.watched[control]
            undo.run()
        self.unfinished.clear()
        self.leavings.close()
        for box in list(self.boxes.values()):
            self.let_go(box)
        self.wanted.clear()
        deadline = time.monotonic() + _PATIENCE
        self._await_ends(deadline)
        for box in list(self.boxes.values()):
            self._bury(box)
        while self.waste:
            self._attempt(self.waste.pop(0))
        if self.session is not None:
            self.problems += self.session.close()
        self.leavings.reap()
        if self.closing is not None:
            try:
                self.channel.send(m.Closed(self.closing.number, tuple(self.problems)))
            except OSError:
                return

    def _await_ends(self, deadline: float) -> None:
        while self.watched and time.monotonic() < deadline and not are_deserted(self.boxes.values(), self.parent):
            for fd, _ in self.poll.poll(0.05):
                if fd in self.watched:
                    self.watched[fd]()
                # Any other was closed a moment ago, by what was done for one before it.
                elif fd == self.parent or (fd == self.channel.sock.fileno() and not self._drain()):
                    self.poll.unregister(fd)

    def _drain(self) -> bool:
        """Throw away what the client still says; False if it is gone."""
        try:
            return self.channel.fill(MSG_DONTWAIT)
        except OSError:
            return False


_SERVE: dict[type, Callable[[Server, Any], None]] = {
    m.Configure: Server._configure,
    m.Connect: Server._connect,
    m.Make: lambda server, request: server.wanted.append(lambda: server._make(request)),
    m.Refresh: Server._refresh,
    m.Read: Server._read,
    m.Compare: Server._compare,
    m.Kill: Server._kill,
    m.Release: Server._release,
    m.Drop: Server._drop,
    m.Close: Server._close,
}


def main(fd: int) -> None:
    """Be a warden for the client at the other end of the socket `fd`."""
    # The client started us with these blocked, and in a session of our own. We end when it does.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    process.set_name("nsbox-warden")
    channel = m.Channel(socket(fileno=fd))
    # Inits are forks of this process: what a collection would touch, each of them would have to copy.
    gc.disable()
    gc.freeze()
    Server(channel, Doors(), process.open_pidfd(os.getppid())).run()
    os._exit(0)
