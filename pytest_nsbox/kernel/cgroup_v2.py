"""cgroup v2: one hierarchy, whose groups offer the controllers that every group above has passed on.

Source: Documentation/admin-guide/cgroup-v2.rst.
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
    PREFIX,
    Files,
    Group,
    Lock,
    chain_of,
    make_parents,
    remove_all,
    remove_parents,
    remove_quietly,
)
from pytest_nsbox.policy.errors import BoxFailed, KernelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pytest_nsbox.policy.limits import Write

JOINED = frozenset({"io", "memory", "pids"})
# Where our own processes go when sessions are made beside them: a group with processes cannot pass controllers on.
LEAF = "nsbox.host"
COUNTERS = (
    "cpu.stat",
    "memory.peak",
    "memory.events",
    "memory.max",
    "pids.peak",
    "pids.events",
    "io.stat",
    "cpu.pressure",
    "memory.pressure",
    "io.pressure",
)
_OWNED = ("cgroup.procs", "cgroup.subtree_control", "cgroup.threads")
_DELEGATE = "systemd-run --user --scope -p Delegate=yes pytest …"
_PARENT = "--sandbox-cgroup-parent=/nsbox"


class KillGroup(Group):
    """A box's group, which the kernel kills as a whole, forks in flight included (since 5.14)."""

    __slots__ = ()

    def kill(self) -> bool:
        if self.read("cgroup.events") is None:
            return False
        if "populated 0" in (self.read("cgroup.events") or ""):
            return False
        try:
            self.write("cgroup.kill", "1")
        except KernelError as error:
            if error.errno != errno.ENOENT:
                raise
            return super().kill()
        return True


class Place:
    """Where sessions are made.

    base     the topmost group that passes controllers on: the own group of this process, or the mount's root
    parents  names of groups below `base` that are made if they are missing (the cgroup parent that the user named)
    own      the own group of this process (`own_group`), or None if it is not below the mount
    point    the mount point
    """

    __slots__ = ("base", "own", "parents", "point")

    def __init__(self, base: str, parents: tuple[str, ...], own: str | None, point: str = "") -> None:
        self.base = base
        self.parents = parents
        self.own = own
        self.point = point or base


class SessionV2(Session):
    """A session on v2."""

    version = 2

    def __init__(self, name: str, place: Place, needed: frozenset[str], files: Files = FILES) -> None:
        super().__init__(name, files)
        self._point = place.point
        self._base = Group(place.base, files)
        self._chain = chain_of(self._base, place.parents)
        self._own = None if place.own is None else Group(place.own, files)
        self._group: Group | None = None
        self._enabled: frozenset[str] = frozenset()
        try:
            self._open()
            available = self._available()
            self._enable((JOINED | needed) & available)
            self.controllers = available - frozenset(self.problems)
        except KernelError as error:
            try:
                self.close()
            except KernelError as second:
                # Where no group can be made none can be removed: the first refusal is the one to tell.
                if second.errno not in DENIED or error.errno not in DENIED:
                    raise
            if error.errno not in DENIED:
                raise
            self.problems[""] = f"{error}; {self._fix(error.errno)}"
            self.controllers = frozenset()

    def _fix(self, number: int) -> str:
        """What gives us groups that we may write to, where the kernel said `number`."""
        if number == errno.EROFS:
            return "mount it read-write: mount -o remount,rw, or docker run --privileged"
        if os.geteuid() == 0:
            return f"name a group that may be written to: {_PARENT}"
        from pytest_nsbox.kernel.cgroup_delegation import delegating_command_v2

        try:
            offered = (Group(self._point, self.files).read("cgroup.controllers") or "").split()
        except KernelError:
            offered = []
        return delegating_command_v2(self._point, offered, os.geteuid())

    def make(self, box: str, writes: Sequence[Write], owner: int | None, counted: frozenset[str] = frozenset()) -> Node:
        asked = frozenset(write.controller for write in writes)
        for controller in asked:
            self.require(controller)
        if self._group is None:
            return Node(box, (), [], frozenset())
        wanted = asked | (counted & self.controllers)
        if not wanted <= self._enabled:
            self._enable(wanted - self._enabled)
            for controller in asked:
                self.require(controller)
        group = KillGroup(f"{self._group.path}/{box}", self.files)
        node = Node(box, (("", group),), [(0, file) for file in COUNTERS], frozenset())
        made: list[Group] = []
        try:
            group.make()
            made.append(group)
            for write in writes:
                write_limit(group, write)
            if owner is not None:
                group.give(owner, _OWNED)
            node.open("cgroup.procs")
        except (KernelError, BoxFailed):
            node.close_fds()
            remove_quietly(made)
            raise
        return node

    def close(self) -> None:
        group, self._group = self._group, None
        try:
            if group is not None:
                remove_all([group])
        finally:
            try:
                remove_parents(self._chain)
            finally:
                try:
                    if self._own is not None:
                        _restore(self._own)
                finally:
                    super().close()

    def _open(self) -> None:
        parent = self._chain[-1] if self._chain else self._base
        group = KillGroup(f"{parent.path}/{self.name}", self.files)
        for attempts_left in reversed(range(MAKE_ATTEMPTS)):
            try:
                make_parents(self._chain)
                group.make()
                break
            except KernelError as error:
                # Another session was the last in this parent and removed it under us.
                if error.errno not in GONE or not attempts_left:
                    raise
        self._group = group

    def _available(self) -> frozenset[str]:
        """The controllers that could reach our boxes, if every group on the way passes them on."""
        return frozenset((self._base.read("cgroup.controllers") or "").split())

    def _enable(self, controllers: Iterable[str]) -> None:
        """Pass `controllers` on from the top to the session's boxes; those that cannot go into `problems`."""
        assert self._group is not None
        levels = [self._base, *self._chain, self._group]
        for controller in sorted(controllers):
            try:
                for level in levels:
                    self._pass_on(level, controller)
                self._enabled |= {controller}
            except KernelError as error:
                if error.errno not in DENIED | {errno.EBUSY, errno.EINVAL, errno.ENOENT, errno.EOPNOTSUPP}:
                    raise
                self.problems[controller] = f"{error}; {_advice(error.errno)}"
                self.controllers -= {controller}

    def _pass_on(self, level: Group, controller: str) -> None:
        if controller in (level.read("cgroup.subtree_control") or "").split():
            return
        if _holds_processes(level):
            # Some controllers could be passed on all the same: then its children are invalid and nobody can enter them.
            if self._own is None or level.path != self._own.path or not is_delegated(level):
                raise KernelError(f"write '+{controller}' to", f"{level.path}/cgroup.subtree_control", errno.EBUSY)
            _evacuate(level)
        level.write("cgroup.subtree_control", f"+{controller}")


def own_group(path: str) -> str:
    """Return the group in which a process of group `path` makes its sessions: `path`, or the one above our leaf."""
    parent, _, name = path.rpartition("/")
    return parent if name == LEAF else path


def is_delegated(group: Group) -> bool:
    """Tell whether the subtree was handed to us, so that moving its processes is our right.

    Handed over means: systemd marked it (Delegate=yes), or it is the root of a cgroup namespace (a container, a box),
    or an ordinary user owns it.
    """
    for name in ("trusted.delegate", "user.delegate"):
        try:
            if group.files.getxattr(group.path, name) == b"1":
                return True
        except OSError:
            pass
    try:
        owner = os.stat(group.path).st_uid
    except OSError:
        return False
    if owner != 0 and owner == os.geteuid():
        return True
    # The real root has no cgroup.type; a group that is called "/" and has one is the root of a namespace.
    return own_group(_own_path()).strip("/") == "" and os.path.exists(f"{group.path}/cgroup.type")


def _own_path() -> str:
    with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            if line.startswith("0::"):
                return line[3:].rstrip("\n")
    return ""


def _holds_processes(group: Group) -> bool:
    """Tell whether processes keep `group` from passing controllers on. The real root may; only it has no type."""
    return group.read("cgroup.type") is not None and bool(group.read("cgroup.procs"))


def _evacuate(group: Group) -> None:
    """Move every process of `group` into its leaf, so that the group can pass controllers on."""
    with Lock(group):
        leaf = group.child(LEAF)
        if not leaf.exists():
            leaf.make()
        _move(group, leaf)


def _restore(group: Group) -> None:
    """Undo `_evacuate` once no session is left in `group`."""
    leaf = group.child(LEAF)
    if not leaf.exists():
        return
    with Lock(group):
        if any(child.path.rpartition("/")[2].startswith(PREFIX) or child.is_made() for child in group.children()):
            return
        passed = (group.read("cgroup.subtree_control") or "").split()
        try:
            if passed:
                group.write("cgroup.subtree_control", " ".join(f"-{controller}" for controller in passed))
        except KernelError as error:
            # Groups of others pass them on as well by now.
            if error.errno == errno.EBUSY:
                return
            raise
        _move(leaf, group)
        leaf.remove()


def _move(source: Group, target: Group) -> None:
    for _ in range(100):
        pids = (source.read("cgroup.procs") or "").split()
        if not pids:
            return
        for pid in pids:
            try:
                target.write("cgroup.procs", pid)
            except KernelError as error:
                # It ended meanwhile. EINVAL: pid 0, a process of a pid namespace above ours.
                if error.errno != errno.ESRCH:
                    raise


def _advice(number: int) -> str:
    if number == errno.EBUSY:
        return f"processes live in that group, and it is not delegated: {_DELEGATE}, or, as root, {_PARENT}"
    if number in DENIED:
        return f"run as root, or in a delegated group: {_DELEGATE}"
    return "the group above does not pass it on (cgroup.subtree_control)"
