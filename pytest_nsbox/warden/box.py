"""One box in the warden: a tree, a place in the cgroups, and a first process that holds its namespaces."""

from __future__ import annotations

import os
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_STREAM, socketpair

from pytest_nsbox.kernel import namespaces, process
from pytest_nsbox.policy.errors import BoxFailed, KernelError
from pytest_nsbox.policy.limits import cgroup_writes, with_disk
from pytest_nsbox.policy.plan import SetClocks
from pytest_nsbox.real import text_of
from pytest_nsbox.warden import init
from pytest_nsbox.warden.ids import SHIFTED_ROOT
from pytest_nsbox.warden.late import find_late

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pytest_nsbox.kernel.cgroup_node import Node
    from pytest_nsbox.policy.plan import Plan
    from pytest_nsbox.policy.spec import Spec
    from pytest_nsbox.warden.recorded import Running
    from pytest_nsbox.warden.session import Session
    from pytest_nsbox.warden.tree import Tree
    from pytest_nsbox.warden.view import View

_FLAGS = {name: flag for flag, name in namespaces.FILES.items()}


class Box:
    """A box that exists. `pidfd` is its init's; `control` the line that holds the init (it ends when we hang up)."""

    __slots__ = (
        "clock", "control", "name", "namespaces", "node", "pid", "pidfd", "reaped", "released", "running", "seen",
        "tree", "view",
    )  # fmt: skip

    def __init__(self, name: str, plan: Plan, node: Node, tree: Tree) -> None:
        self.name = name
        self.node = node
        self.tree = tree
        self.pid = -1
        self.pidfd = -1
        self.control = -1
        # A time namespace with offsets, which a process cannot enter through the pidfd.
        self.clock = -1
        # What its init runs until it is ready, if that is no fork of us.
        self.running: Running | None = None
        # What it sees of its limits, with proc="limits".
        self.view: View | None = None
        self.namespaces = 0
        for kind in plan.namespaces:
            self.namespaces |= _FLAGS[kind]
        self.released = False
        self.reaped = False
        # Changed paths that were told of already, of a box that several tests share: their hashes.
        self.seen: set[int] = set()


class Undo:
    """What takes back half a box, last things first. A failure in it must not hide the one that it is about."""

    def __init__(self) -> None:
        self._steps: list[Callable[[], object]] = []

    def add(self, step: Callable[[], object]) -> None:
        """Have `step` run if it comes to undoing."""
        self._steps.append(step)

    def run(self) -> None:
        """Take everything back."""
        while self._steps:
            step = self._steps.pop()
            try:
                step()
            except (KernelError, BoxFailed, OSError):
                continue


def are_deserted(boxes: Iterable[Box], parent: int) -> bool:
    """Say if nobody lives in the boxes any more, and `parent` has ended, whose children did.

    Those are for process 1 to collect then, or for who takes orphans in its stead; some take seconds, others forget it.
    Their inits cannot go before, and need nothing of the boxes by then.
    """
    return (
        parent >= 0
        and process.has_ended(parent)
        and not any(text_of(f"{path}/cgroup.procs") for box in boxes for path in box.node.paths())
    )


def begin_box(
    session: Session, name: str, spec: Spec, plan: Plan, shared: tuple[str, ...], neighbour: Box | None = None
) -> tuple[Box, Undo]:
    """Begin to make a box of `spec`, with the host paths `shared`; `finish_box` once its init has reported.

    neighbour  a box whose network it shares
    Raises BoxFailed, KernelError or OSError; nothing is left then. Else the second result takes back what was done.
    """
    undo = Undo()
    try:
        cgroups = session.cgroups
        if cgroups is None:
            raise BoxFailed("the session is not open")
        owner = SHIFTED_ROOT if plan.shifted else None
        writes = cgroup_writes(spec, cgroups.version)
        if spec.io:
            writes = with_disk(writes, session.find_disk())
        node = cgroups.make(name, writes, owner, plan.counted)
        undo.add(node.remove)
        session.make_view_points(node.views)
        tree = session.take_tree(plan, find_late(shared, sockets=plan.sockets))
        undo.add(tree.remove)
        box = Box(name, plan, node, tree)
        if plan.live:
            box.view = session.open_views().make(name, spec, plan, node)
            undo.add(box.view.close)
        _clone(session, box, undo, neighbour)
        try:
            if box.namespaces & namespaces.NEWUSER:
                session.doors.write_maps(box.pid, *session.maps_of(plan))
            os.write(box.control, init.GO)
        except BrokenPipeError:
            # Why it has given up it tells itself.
            pass
    except BaseException:
        undo.run()
        raise
    return box, undo


def _clone(session: Session, box: Box, undo: Undo, neighbour: Box | None) -> None:
    plan = box.tree.plan
    ours, theirs = socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
    try:
        box.control = ours.detach()
        undo.add(lambda: os.close(box.control))
        # Before we act as the box's root: what its init executes must be ours.
        runs_program = neighbour is None and session.doors.recorded and session.recorded.can(plan)
        # The ids in force here become the owner of the box's message queues: the kernel makes that file system in the
        # clone.
        session.act_as(shifted=plan.shifted)
        tells_pages = False
        try:
            if neighbour is not None:
                pid, pidfd = _clone_beside(neighbour, box, theirs.fileno())
            elif runs_program:
                shown = _shown(session, box, tells_pages=False)
                words = plan, box.namespaces, theirs.fileno(), box.tree.place, shown
                pid, pidfd, box.running = session.recorded.start(*words)
            else:
                tells_pages = session.wants_pages()
                pid, pidfd = session.doors.clone3(box.namespaces)
            if pid == 0:
                shown = _shown(session, box, tells_pages=tells_pages)
                init.run(session.doors, plan, theirs.fileno(), box.tree.place, shown)
            box.pid, box.pidfd = pid, pidfd
            undo.add(lambda: end(box))
        finally:
            session.act_as(shifted=False)
    finally:
        theirs.close()


def _clone_beside(neighbour: Box, box: Box, control: int) -> tuple[int, int]:
    """What clone3 does, in the network of `neighbour`; why there is no init, `control` tells instead of it."""
    from pytest_nsbox.warden.second_fork import SecondFork

    fork = SecondFork(neighbour.pidfd, namespaces.NEWNET, box.namespaces)
    first = os.fork()
    if first == 0:
        refused = fork.in_child()
        if refused is not None:
            init.give_up(control, refused)
        return 0, -1
    pid = fork.in_parent(first)
    # For the programs that are started in it.
    box.namespaces |= namespaces.NEWNET
    return pid, process.open_pidfd(pid)


def _shown(session: Session, box: Box, *, tells_pages: bool) -> init.Shown:
    own = {name for name, _ in box.node.views}
    screened = session.cgroups.screened if session.cgroups is not None and box.tree.plan.limited else ()
    screens = tuple(view for view in screened if view[0] not in own)
    if box.view is None:
        return init.Shown(box.node.views, screens, tells_pages=tells_pages)
    return init.Shown(box.node.views, screens, tuple(box.view.files), box.view.began, tells_pages)


def finish_box(session: Session, box: Box, undo: Undo) -> None:
    """See `box` through to the end of its init's preparations. Raises as `begin_box` does; nothing is left then."""
    try:
        report = _read_report(box)
        if box.running is not None:
            _finish_running(session, box.running, report)
        elif not report.startswith(init.READY):
            raise init.failure(report)
        if any(isinstance(op, SetClocks) for op in box.tree.plan.init):
            box.clock = session.doors.open_namespace(box.pid, "time_for_children")
        session.pin(init.pages(report))
    except BaseException:
        undo.run()
        raise


def _read_report(box: Box) -> bytes:
    try:
        return os.read(box.control, init.LARGEST_REPORT)
    except ConnectionResetError:
        # It ended without a look at what we had told it.
        return b""


def _finish_running(session: Session, running: Running, report: bytes) -> None:
    # Its change of ids was one of the memory that we shared.
    session.doors.set_dumpable(dumpable=True)
    if report:
        running.give_back()
        return
    refusal = running.loaded.refusal()
    raise init.failure(b"") if refusal is None else init.explained(refusal)


def make_box(session: Session, name: str, spec: Spec, plan: Plan, shared: tuple[str, ...]) -> Box:
    """Make a box, begun and finished. Raises as `begin_box` does."""
    box, undo = begin_box(session, name, spec, plan, shared)
    finish_box(session, box, undo)
    return box


def end(box: Box) -> None:
    """Kill the init and wait for it: for a box that was never handed out, whose init nothing holds back."""
    process.kill(box.pidfd)
    os.waitid(os.P_PIDFD, box.pidfd, os.WEXITED)
    os.close(box.pidfd)
