"""cgroup v1: one hierarchy per controller, or per group of controllers that are mounted together.

A box joins the hierarchies that count (cpuacct, memory, pids) and those that its limits need: each costs about
0.1 ms to make, attach to and remove.

Source: cgroups(7), Documentation/admin-guide/cgroup-v1/.
"""

from __future__ import annotations

import errno
import os

from pytest_nsbox.kernel.cgroup_node import Node, Session, write_limit
from pytest_nsbox.kernel.cgroup_tree import (
    DENIED,
    FILES,
    GONE,
    MAKE_ATTEMPTS,
    Files,
    Group,
    Lock,
    chain_of,
    make_parents,
    remove_parents_quietly,
    remove_quietly,
)
from pytest_nsbox.policy.errors import BoxFailed, KernelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_nsbox.policy.limits import Write

JOINED = frozenset({"cpuacct", "memory", "pids"})
COUNTERS = {
    "cpuacct": ("cpuacct.usage", "cpuacct.usage_user", "cpuacct.usage_sys"),
    "cpu": ("cpu.stat",),
    "memory": ("memory.max_usage_in_bytes", "memory.limit_in_bytes", "memory.oom_control", "memory.failcnt"),
    "pids": ("pids.peak", "pids.events"),
    "blkio": ("blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_serviced_recursive"),
}
# On v1 an event is counted in the group of the victim alone, not in those above it.
_LOCAL = frozenset({"memory.oom_control", "pids.events"})
_PROCESSES = "cgroup.procs"
_OWNED = ("tasks", _PROCESSES)
_THREADED = "threaded\n"


class Hierarchy:
    """One mounted v1 hierarchy: its controllers and the group below which sessions are made.

    view     the name of its mount point
    base     the parent of sessions: the own group of this process, or the mount's root
    parents  names of groups below `base` that are made if they are missing (the cgroup parent that the user named)
    door     the file through which a process goes into a group
    point    the mount point
    """

    __slots__ = ("base", "controllers", "door", "group", "parents", "point", "view")

    def __init__(
        self,
        controllers: frozenset[str],
        view: str,
        base: str,
        parents: tuple[str, ...],
        door: str = "tasks",
        *,
        point: str = "",
    ) -> None:
        self.point = point or base
        self.controllers = controllers
        self.view = view
        self.base = base
        self.parents = parents
        self.door = door
        self.group: Group | None = None

    def is_named(self) -> bool:
        """Say if it has a name instead of controllers."""
        return any(name.startswith("name=") for name in self.controllers)

    def chain(self, files: Files) -> list[Group]:
        return chain_of(Group(self.base, files), self.parents)

    def join(self, name: str, files: Files) -> Group:
        """Return the session's group `name`, made at the first call."""
        if self.group is not None:
            return self.group
        chain = self.chain(files)
        parent = chain[-1] if chain else Group(self.base, files)
        group = parent.child(name)
        made: list[Group] = []
        for attempts_left in reversed(range(MAKE_ATTEMPTS)):
            try:
                make_parents(chain)
                for above in chain:
                    self.fill(above)
                group.make()
                made.append(group)
                self.fill(group)
                _count_nested_groups(self, group)
                break
            except KernelError as error:
                # Another session was the last in this parent and removed it under us.
                if error.errno in GONE and attempts_left:
                    continue
                remove_quietly(made)
                remove_parents_quietly(chain)
                raise
        self.group = group
        return group

    def fill(self, group: Group) -> None:
        """Give a new cpuset what its parent has: without a CPU and a memory node nobody can enter it."""
        if "cpuset" in self.controllers:
            parent = Group(group.path.rpartition("/")[0], group.files)
            for file in ("cpuset.cpus", "cpuset.mems"):
                if not (group.read(file) or "").strip():
                    group.write(file, (parent.read(file) or "").strip())


class Unified(Hierarchy):
    """The v2 hierarchy beside v1 ones that hold all controllers that count.

    at_root  `base` is the root of all groups, and this process lives in it. Then the groups made here are threaded
             ones, into which a process with one thread goes without the kernel's global lock. Whoever takes that lock
             waits for a grace period of RCU, which is some 10 ms, and lets everybody wait who makes or removes groups.
    """

    __slots__ = ("_at_root",)

    def __init__(self, base: str, parents: tuple[str, ...], *, at_root: bool) -> None:
        super().__init__(frozenset(), "unified", base, parents, _PROCESSES)
        self._at_root = at_root

    def join(self, name: str, files: Files) -> Group:
        """`Hierarchy.join`, while no other session is between the steps of it: all must find one kind of parent."""
        if self.group is not None:
            return self.group
        with Lock(Group(self.base, files)):
            return super().join(name, files)

    def fill(self, group: Group) -> None:
        """Make a threaded group of a new one, from the root down. A parent that is not ours stays what it is, and so
        does what is below it.
        """
        if not self._at_root:
            return
        kind = group.read("cgroup.type")
        if kind == "domain invalid\n":
            # What a group is below a threaded one, until it is threaded itself.
            group.write("cgroup.type", "threaded")
            kind = _THREADED
        elif kind is not None and kind != _THREADED and self._is_ours_below_root(group):
            try:
                group.write("cgroup.type", "threaded")
                kind = _THREADED
            except KernelError as error:
                if error.errno in GONE:  # its last session removed it; `join` tries again
                    raise
        self.door = "cgroup.threads" if kind == _THREADED else _PROCESSES

    def _is_ours_below_root(self, group: Group) -> bool:
        if group.path.rpartition("/")[0] != self.base:
            return False
        return not self.parents or group.is_made()


class SessionV1(Session):
    """A session on v1; its groups are made as boxes need them."""

    version = 1

    def __init__(
        self, name: str, hierarchies: Sequence[Hierarchy], needed: frozenset[str], files: Files = FILES
    ) -> None:
        super().__init__(name, files)
        self.controllers = frozenset().union(*(h.controllers for h in hierarchies))
        self._all = tuple(hierarchies)
        self._hierarchies = list(hierarchies)
        self._always: list[Hierarchy] = []
        try:
            for hierarchy in hierarchies:
                if hierarchy.controllers & (JOINED | needed):
                    self._join_or_drop(hierarchy)
            self._always = [h for h in self._hierarchies if h.controllers & JOINED]
        except KernelError:
            self.close()
            raise

    def make(self, box: str, writes: Sequence[Write], owner: int | None, counted: frozenset[str] = frozenset()) -> Node:
        asked = {write.controller for write in writes}
        for controller in asked:
            self.require(controller)
        asked |= counted & self.controllers
        for hierarchy in [h for h in self._hierarchies if h.group is None and h.controllers & asked]:
            self._join_or_drop(hierarchy)
        for write in writes:
            self.require(write.controller)
        joined = [h for h in self._hierarchies if h in self._always or h.controllers & asked]
        groups = [(h, h.join(self.name, self.files).child(box)) for h in joined]
        by_controller = {controller: group for h, group in groups for controller in h.controllers}
        counters = [(i, file) for i, h in enumerate(joined) for c in h.controllers for file in COUNTERS.get(c, ())]
        made: list[Group] = []
        node = Node(box, [(h.view, group) for h, group in groups], counters, _LOCAL)
        try:
            for hierarchy, group in groups:
                group.make()
                made.append(group)
                hierarchy.fill(group)
            for write in writes:
                write_limit(by_controller[write.controller], write)
            if owner is not None:
                for group in made:
                    group.give(owner, _OWNED)
            node.open("tasks")
        except (KernelError, BoxFailed):
            node.close_fds()
            remove_quietly(made)
            raise
        return node

    def freezer(self, node: Node) -> Group:
        self.require("freezer")
        hierarchy = next(h for h in self._hierarchies if "freezer" in h.controllers)
        return hierarchy.join(self.name, self.files).child(node.name)

    def close(self) -> None:
        self.close_hierarchies([*self._hierarchies, *self.beside])

    def unjoined(self) -> list[Hierarchy]:
        return [*(h for h in self._hierarchies if h not in self._always), *self.beside]

    def _join_or_drop(self, hierarchy: Hierarchy) -> None:
        try:
            hierarchy.join(self.name, self.files)
        except KernelError as error:
            if error.errno not in DENIED:
                raise
            self._hierarchies.remove(hierarchy)
            self.controllers -= hierarchy.controllers
            if error.errno == errno.EROFS:
                from pytest_nsbox.kernel.cgroup_delegation import fix_readonly

                self.problems.update({name: f"{error}; {fix_readonly(name)}" for name in hierarchy.controllers})
                return
            if os.geteuid() == 0:
                advice = "name a group that may be written to: --sandbox-cgroup-parent"
            else:
                from pytest_nsbox.kernel.cgroup_delegation import delegating_command

                advice = delegating_command(self._all, os.geteuid())
            for controller in hierarchy.controllers:
                self.problems[controller] = f"{error}; {advice}"


def _count_nested_groups(hierarchy: Hierarchy, group: Group) -> None:
    """Have memory of groups inside count here too, and in the groups that are made inside, which inherit it.

    The kernel does so by itself since 5.11; before, a nested group slips out of the box's limit.
    """
    if "memory" in hierarchy.controllers and group.read("memory.use_hierarchy") == "0\n":
        group.write("memory.use_hierarchy", "1")
