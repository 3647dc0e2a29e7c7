"""The containers of a warden: what clients ask for on their connections, and what becomes of it.

Imported when the first client connects. Nothing here waits: each order is answered when what it asks for has happened.
An order is a frame {"n": number, "do": name, …}, its answer {"n": number, "value": …} or {"n": number, "error": text};
what an act returns is the value, unless it answers later by itself.
"""

from __future__ import annotations

import heapq
import os
import select
import time
from _socket import AF_UNIX, MSG_DONTWAIT, SOCK_STREAM, socketpair

from pytest_nsbox.policy.errors import BoxFailed, KernelError
from pytest_nsbox.policy.plan import make_plan
from pytest_nsbox.policy.record import replace
from pytest_nsbox.policy.spec import Spec
from pytest_nsbox.policy.units import LONGEST_WAIT
from pytest_nsbox.warden import execute, volumes
from pytest_nsbox.warden.acts import ACTS
from pytest_nsbox.warden.box import begin_box
from pytest_nsbox.warden.commit import commit
from pytest_nsbox.warden.container import Container, Process
from pytest_nsbox.warden.order import LATER, Connection, Order, answer_not_started, make_program
from pytest_nsbox.warden.wire import BrokenWireError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from pytest_nsbox.policy.plan import Plan
    from pytest_nsbox.warden.box import Box
    from pytest_nsbox.warden.connected import Connected
    from pytest_nsbox.warden.server import Server

# Each is a few mounts in the warden's mount namespace, which the kernel copies for every box.
_MOST_ROOTS = 64


class Containers:
    """All of them, by name."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._spawner = execute.Spawner(server.doors)
        self._connections: set[Connection] = set()
        self.by_name: dict[str, Container] = {}
        self._plans: dict[tuple[Spec, tuple[object, ...]], Plan] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timed = 0
        # How many there were at the same time, at most: as many roots are kept for others to come.
        self.at_once = 0
        own = {"commit": commit, "network": Containers._ask_networks}
        self._acts = {"start": Containers.start, **ACTS, **volumes.ACTS, **own}
        # From the first network or published port on.
        self.connected: Connected | None = None

    # --- connections

    def connect(self) -> int:
        """Make a connection; return the client's end, which the caller closes after sending it."""
        ours, theirs = socketpair(AF_UNIX, SOCK_STREAM)
        connection = Connection(ours)
        self._connections.add(connection)
        self.server.watch(ours.fileno(), lambda: self._listen(connection))
        return theirs.detach()

    def _listen(self, connection: Connection) -> None:
        wire = connection.wire
        try:
            if connection.full and wire.flush():
                connection.full = False
                self.server.poll.modify(wire.fileno(), select.EPOLLIN)
            try:
                alive = wire.fill(MSG_DONTWAIT)
            except BlockingIOError:
                return
            while (found := wire.pop()) is not None:
                head, _, fds = found
                self._serve(Order(self.server.poll, connection, head, fds))
        except (OSError, BrokenWireError):
            alive = False
        if not alive:
            self._disconnect(connection)

    def _disconnect(self, connection: Connection) -> None:
        connection.open = False
        self._connections.discard(connection)
        self.server.unwatch(connection.wire.fileno())
        connection.wire.close()
        for container in [c for c in self.by_name.values() if c.owner is connection]:
            self._remove(container)
        if self.connected is not None:
            self.connected.disown(connection)

    def _ask_networks(self, order: Order) -> object:
        return self.networks().serve(order)

    def networks(self) -> Connected:
        """Return what connects boxes; made when it is first wanted."""
        if self.connected is None:
            from pytest_nsbox.warden.connected import Connected

            self.connected = Connected(self)
        return self.connected

    def _serve(self, order: Order) -> None:
        try:
            result = self._acts[order.head["do"]](self, order)
            if result is not LATER:
                order.answer(result)
        except (KernelError, BoxFailed) as error:
            order.fail(str(error))
        except Exception as error:  # noqa: BLE001  # a test may say anything here; the warden serves others too
            order.fail(f"the warden could not do {order.head.get('do')!r}: {type(error).__name__}: {error}")
        finally:
            order.close()

    # --- timers

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Have `action` run in so many seconds."""
        self._timed += 1
        heapq.heappush(self._timers, (time.monotonic() + seconds, self._timed, action))

    def rest(self) -> float | None:
        """Return the seconds until something is due, or many before that; None if nothing is."""
        return min(max(0.0, self._timers[0][0] - time.monotonic()), LONGEST_WAIT) if self._timers else None

    def tick(self) -> None:
        """Run what is due."""
        while self._timers and self._timers[0][0] <= time.monotonic():
            heapq.heappop(self._timers)[2]()

    # --- beginning

    def start(self, order: Order) -> object:
        """Start a container; answered when its program runs, or (`run`) when it has ended."""
        head = order.head
        spec = Spec.from_json(head["spec"])
        self.server.made += 1
        number = self.server.made
        name = head.get("name") or f"box-{number}"
        if name in self.by_name:
            raise BoxFailed(f"the name {name!r} is taken by another box of this session")
        if self.server.failure:
            raise BoxFailed(self.server.failure)
        program = make_program(head, spec)
        container = Container(name, number, spec, program, None if head.get("detached") else order.connection)
        container.note = head.get("note")
        container.removing = bool(head.get("run"))
        container.joined = head.get("joined")
        self.by_name[name] = container
        self.at_once = min(max(self.at_once, len(self.by_name)), _MOST_ROOTS)
        stdin = order.take_stdin()
        # Boxes of tests and of containers are made one after the other, in the order in which they were asked for.
        self.server.wanted.append(lambda: self._begin(container, order, stdin))
        return LATER

    def _plan(self, spec: Spec, image: list[list[str]] | None) -> Plan:
        """Return the plan of a container; `image` is what `policy.image.Image.for_box` told."""
        root = tuple(map(tuple, image)) if image is not None else ()
        plan = self._plans.get((spec, root))
        if plan is None:
            session = self.server.session
            assert session is not None
            # Containers see no sockets of the host.
            facts = session.images.facts(root) if root else None
            plan = self._plans[spec, root] = replace(make_plan(spec, session.facts, facts), sockets=False)
        return plan

    def _neighbour_of(self, container: Container) -> Box | None:
        """Return the box whose network `container` shares; None if there is none. Raises BoxFailed."""
        if not container.joined:
            return None
        other = self.by_name.get(container.joined)
        if other is None or other.box is None or other.status not in ("running", "paused"):
            raise BoxFailed(f"net: the box {container.joined!r} is not running: it has no network to share")
        return other.box

    def _begin(self, container: Container, order: Order, stdin: int) -> None:
        server = self.server
        try:
            assert server.session is not None
            if not order.connection.open or container.removed:
                raise BoxFailed("nobody waits for it any more")
            plan = self._plan(container.spec, order.head.get("image"))
            neighbour = self._neighbour_of(container)
            if neighbour is not None:
                from pytest_nsbox.policy.neighbours import with_names_of

                plan = with_names_of(plan, neighbour.tree.init_paths)
            box, undo = begin_box(server.session, container.id, container.spec, plan, (), neighbour)
            if container.spec.net not in ("host", "none") or "publish" in order.head:
                self.networks().connect(container, box, undo, order.head.get("publish", ()))
        except Exception as error:  # noqa: BLE001  # as in _serve: nobody has looked at the spec's values before
            self._give_up(container, order, stdin, error)
            return
        try:
            early = self._spawner.fork_early(box, container.program, stdin, self._screens(), undo)
        except (BoxFailed, OSError) as error:
            undo.run()
            self._give_up(container, order, -1, error)
            return
        left = stdin if early is None else -1
        server.await_init(box, undo, lambda error: self._begun(container, order, left, (box, early), error))

    def _screens(self) -> tuple[int, ...]:
        session = self.server.session
        return session.cgroups.screens if session is not None and session.cgroups is not None else ()

    def _begun(
        self,
        container: Container,
        order: Order,
        stdin: int,
        made: tuple[Box, execute.Early | None],
        error: Exception | None,
    ) -> None:
        box, early = made
        if error is None and container.removed:
            error = BoxFailed("it was removed before it began")
            if early is not None:
                early.drop()
            self._leave(box)
            self.server.let_go(box)
        if error is not None:
            self._give_up(container, order, stdin, error)
            return
        container.box = box
        self._launch(container, order, stdin, early)

    def _give_up(self, container: Container, order: Order, stdin: int, error: Exception) -> None:
        """The box could not be made."""
        if stdin >= 0:
            os.close(stdin)
        if self.by_name.get(container.name) is container:
            del self.by_name[container.name]
        container.removed = True
        order.fail(str(error))

    def _launch(self, container: Container, order: Order, stdin: int, early: execute.Early | None) -> None:
        """The box is there: start the main program in it."""

        def ended() -> None:
            self._exited(container)

        def told(error: KernelError | BoxFailed | None) -> None:
            if error is not None:
                answer_not_started(order, error, run=container.removing or container.owner is None)
                self._remove(container)
            elif not container.removing:
                order.answer(self.state(container))

        try:
            if early is not None:
                early.let_in()
                container.main = self._follow(Process(early.pid, early.pidfd, early.streams), told)
            else:
                container.main = self.spawn(container, container.program, stdin, told)
        except (KernelError, OSError) as error:
            order.fail(str(error))
            self._remove(container)
            return
        container.status = "running"
        container.main.waiting.append(ended)
        if container.removing:
            container.main.waiting.append(lambda: self.finished(container, order))
        if container.spec.timeout is not None:
            self.after(container.spec.timeout, lambda: self._time_out(container))

    def spawn(
        self,
        container: Container,
        program: execute.Program,
        stdin: int,
        told: Callable[..., None],
        outputs: tuple[int, ...] = (),
    ) -> Process:
        assert container.box is not None
        streams = execute.Streams(stdin, outputs)
        try:
            view = container.box.view
            if view is not None and view.theirs < 0:
                view.open_line()
            running = Process(*self._spawner.spawn(container.box, program, streams, self._screens()), streams)
            if view is not None:
                view.follow(self.server.watch, self.server.forget)
        except BaseException:
            streams.close_ours()
            raise
        finally:
            streams.close_theirs()
        return self._follow(running, told)

    def _follow(self, running: Process, told: Callable[..., None]) -> Process:
        for pipe in list(running.pipes):
            self.server.watch(pipe, lambda pipe=pipe: self._pump(running, pipe))  # type: ignore[misc]
        self.server.watch(running.failure, lambda: self._tell_failure(running, told))
        self.server.watch(running.pidfd, lambda: self._reap(running))
        return running

    def _pump(self, running: Process, pipe: int) -> None:
        if not running.pump(pipe):
            self._close_pipe(running, pipe)

    def _close_pipe(self, running: Process, pipe: int) -> None:
        del running.pipes[pipe]
        self.server.forget(pipe)

    def _tell_failure(self, running: Process, told: Callable[..., None]) -> None:
        """The new process became its program (the pipe is at its end), or told why it did not."""
        report = os.read(running.failure, 8192)
        self.server.forget(running.failure)
        running.failure = -1
        told(execute.failure(report))

    def _reap(self, running: Process) -> None:
        if not running.reap():
            return
        self.server.forget(running.pidfd)
        if running.failure >= 0:
            # Both happened since the last look; who waits is told in order.
            self.server.watched[running.failure]()
        running.drain()
        for pipe in list(running.pipes):
            self._close_pipe(running, pipe)
        running.wake()
        waiting, running.waiting = running.waiting, []
        for action in waiting:
            action()

    def _exited(self, container: Container) -> None:
        """The main program has ended, and the box with it."""
        assert container.box is not None
        container.thaw()
        container.counters = container.box.node.read()
        container.status = "exited"
        container.kill()
        self._leave(container.box)

    def _leave(self, box: Box) -> None:
        """A box has ended, as far as networks and published ports go."""
        if self.connected is not None:
            self.connected.leave(box)

    def _time_out(self, container: Container) -> None:
        if container.status in ("running", "paused"):
            container.timed_out = True
            container.kill()

    # --- ends

    def finished(self, container: Container, order: Order) -> None:
        """A container that was run for its result: tell it, and remove the container."""
        assert container.main is not None
        try:
            order.answer(self.result(container), container.main.output)
        except BoxFailed as error:
            order.fail(str(error))
        self._remove(container)

    def result(self, container: Container) -> dict[str, Any]:
        assert container.main is not None
        return {
            **self.state(container),
            "counters": container.read_counters(),
            "wall": container.wall(),
            "changes": self.server.changes_of(container.box) if container.box is not None else [],
        }

    def state(self, container: Container) -> dict[str, Any]:
        main = container.main
        return {
            "name": container.name,
            "id": container.id,
            "status": container.status,
            "pid": main.pid if main is not None else 0,
            "returncode": main.returncode if main is not None else None,
            "timed_out": container.timed_out,
            **container.reached,
        }

    def _remove(self, container: Container) -> None:
        """End a container and forget it; what is left of its box goes when its processes have."""
        if container.removed:
            return
        container.removed = True
        if self.by_name.get(container.name) is container:
            del self.by_name[container.name]
        container.kill()
        if container.box is not None:
            self._leave(container.box)
        self._clear(container)

    def _clear(self, container: Container) -> None:
        running = container.processes()
        if running:
            # Its init cannot go before they are collected.
            running[0].waiting.append(lambda: self._clear(container))
            return
        for ended in (container.main, *container.execs):
            if ended is not None:
                ended.output.close()
        if container.freezer is not None:
            self.server.waste.append(container.freezer.remove)
        if container.box is not None and not container.box.released:
            self.server.let_go(container.box)

    def close(self) -> None:
        """The warden ends: let go of every client, and of what the containers are; their inits are killed by others."""
        for connection in list(self._connections):
            self._disconnect(connection)
        for container in list(self.by_name.values()):
            self._remove(container)
        if self.connected is not None:
            self.connected.close()
        self._timers.clear()
