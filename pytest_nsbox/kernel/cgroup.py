"""The door to cgroups: find the hierarchies, choose v1 or v2, open a session there, sweep what dead sessions left.

Nothing is assumed about paths: mounts come from /proc/self/mountinfo (proc(5)), our own groups from /proc/self/cgroup
(cgroups(7)).
"""

from __future__ import annotations

import errno
import os

from pytest_nsbox.kernel import cgroup_v1, cgroup_v2
from pytest_nsbox.kernel.cgroup_node import Node, Session
from pytest_nsbox.kernel.cgroup_tree import FILES, PREFIX, Files, Group, chain_of, remove_all, remove_parents
from pytest_nsbox.policy.errors import KernelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "Files",
    "Mount",
    "Node",
    "Session",
    "find_mounts",
    "leftovers",
    "open_session",
    "parse_mounts",
    "sweep",
    "systemd_is_booted",
    "unified",
]

# Super options of a v1 mount that are no controllers.
_OPTIONS = frozenset({"rw", "ro", "xattr", "noprefix", "clone_children", "cpuset_v2_mode", "favordynmods", "none"})


class Mount:
    """One cgroup mount.

    point        the mount point
    root         which group of the hierarchy is mounted there, as this cgroup namespace names it
    own          the group of this process in that hierarchy, ditto
    controllers  v1: of the mount, or its "name=…" if it has none; v2: none (ask cgroup.controllers of the group)
    """

    __slots__ = ("controllers", "own", "point", "root", "version")

    def __init__(self, version: int, point: str, root: str, own: str, controllers: frozenset[str]) -> None:
        self.version = version
        self.point = point
        self.root = root
        self.own = own
        self.controllers = controllers

    def own_path(self) -> str | None:
        """Return the directory of this process's group, or None if it does not lie below this mount."""
        if self.root == "/":
            below = self.own
        elif self.own == self.root or self.own.startswith(self.root + "/"):
            below = self.own[len(self.root) :]
        else:
            return None
        # A leading ".." says that the group lies outside the cgroup namespace.
        return None if "/.." in below else self.point + below.rstrip("/")


def parse_mounts(mountinfo: str, cgroup: str) -> list[Mount]:
    """Return the cgroup mounts in the text of /proc/self/mountinfo, given that of /proc/self/cgroup."""
    own: dict[str, str] = {}
    for line in cgroup.splitlines():
        _, controllers, path = line.split(":", 2)
        own[controllers] = path
    mounts: dict[str, Mount] = {}
    for line in mountinfo.splitlines():
        head, _, tail = line.partition(" - ")
        root, point = (_unescape(field) for field in head.split(" ")[3:5])
        kind, _, options = tail.split(" ", 2)
        # The last mount on a point hides those before it on that point and below, of whatever kind.
        for hidden in [other for other in mounts if other == point or (point != "/" and other.startswith(point + "/"))]:
            del mounts[hidden]
        if kind == "cgroup2":
            mounts[point] = Mount(2, point, root, own.get("", "/"), frozenset())
        elif kind == "cgroup":
            names = frozenset(
                o for o in options.split(",") if o not in _OPTIONS and ("=" not in o or o.startswith("name="))
            )
            place = next((path for key, path in own.items() if key and names & set(key.split(","))), None)
            if names and place is not None:
                mounts[point] = Mount(1, point, root, place, names)
    # The freezer first: whoever is killed through another hierarchy does not die before it is thawed.
    return sorted(mounts.values(), key=lambda mount: "freezer" not in mount.controllers)


def find_mounts() -> list[Mount]:
    """Return the cgroup mounts that this process sees."""
    texts = []
    for path in ("/proc/self/mountinfo", "/proc/self/cgroup"):
        try:
            with open(path, encoding="utf-8", errors="surrogateescape") as file:
                texts.append(file.read())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise KernelError("read", path, error.errno or errno.EIO) from None
    return parse_mounts(*texts)


def unified(mounts: Iterable[Mount]) -> Mount | None:
    """Return the mount of cgroup v2, if there is one."""
    return next((mount for mount in mounts if mount.version == 2), None)


def systemd_is_booted() -> bool:
    """Say if systemd is process 1, and all groups are its own to give (sd_booted(3))."""
    return os.path.isdir("/run/systemd/system")


def open_session(
    parent: str | None,
    name: str,
    needed: frozenset[str] = frozenset(),
    files: Files = FILES,
    mounts: list[Mount] | None = None,
) -> Session:
    """Make the group `nsbox-<name>` in each hierarchy that boxes will use, and return the session.

    parent  the group below which it is made, relative to each hierarchy's mount; what is missing of it is made, and
            removed when the last session in it closes. None: the group that this process lives in.
    needed  controllers that boxes will have limits of; others can still follow, at the cost of making groups later.

    A hierarchy that cannot be used is no error: `Session.problems` says why, and `Session.make` fails for a limit that
    needs it. Any other failure raises KernelError, with everything undone.
    """
    if mounts is None:
        mounts = find_mounts()
    parts = _parts(parent)
    v2 = next((m for m in mounts if m.version == 2 and _usable(m, parent)), None)
    v1 = _hierarchies(mounts, parent)
    offered = _controllers_v2(v2, parent)
    # A hybrid machine binds each controller to one version: the one that has what counts most wins.
    if v2 is not None and offered and not {"memory", "pids"} & _names(v1):
        path = v2.own_path()
        own = None if path is None else cgroup_v2.own_group(path)
        base = v2.point.rstrip("/") if parts is not None or own is None else own
        session: Session = cgroup_v2.SessionV2(name, cgroup_v2.Place(base, parts or (), own, v2.point), needed, files)
        session.beside = v1
        return session
    if _names(v1):
        session = cgroup_v1.SessionV1(name, [h for h in v1 if not h.is_named()], needed, files)
        session.beside = [h for h in v1 if h.is_named()] + _unified(v2, parts)
        return session
    session = Session(name, files)
    if not mounts:
        session.problems[""] = "no cgroup file system is mounted; mount -t cgroup2 cgroup2 /sys/fs/cgroup"
    else:
        session.problems[""] = (
            "the own group of this process is not below a cgroup mount; enter a new cgroup namespace, "
            "or name a group: --sandbox-cgroup-parent=/nsbox"
        )
    return session


def leftovers(parent: str | None) -> set[str]:
    """Return the names of all sessions, dead or alive, that have groups below `parent`."""
    found: set[str] = set()
    for group in _session_parents(find_mounts(), parent, FILES):
        for child in group.children():
            name = child.path.rpartition("/")[2]
            if name.startswith(PREFIX):
                found.add(name[len(PREFIX) :])
    return found


def sweep(parent: str | None, names: Iterable[str], files: Files = FILES) -> None:
    """Kill and remove what the sessions `names` left, and then the parents that a session made, if empty.

    The caller knows that these sessions are dead. Everything is tried; the first error is raised at the end.
    """
    mounts = find_mounts()
    parents = _session_parents(mounts, parent, files)
    parts = _parts(parent) or ()
    try:
        remove_all(group.child(PREFIX + name) for group in parents for name in names)
    finally:
        for group in parents:
            # No group outside the named parent bears the mark.
            base = group.path[: -len("/".join(("", *parts)))] if parts else group.path
            remove_parents(chain_of(Group(base, files), parts))


def _session_parents(mounts: list[Mount], parent: str | None, files: Files) -> list[Group]:
    parts = _parts(parent)
    groups = []
    for mount in mounts:
        path = mount.own_path() if parts is None else "/".join((mount.point.rstrip("/"), *parts))
        if path is not None and mount.version == 2:
            path = cgroup_v2.own_group(path)
        if path is not None:
            groups.append(Group(path, files))
    return [group for group in groups if group.exists()]


def _hierarchies(mounts: list[Mount], parent: str | None) -> list[cgroup_v1.Hierarchy]:
    found: list[cgroup_v1.Hierarchy] = []
    parts = _parts(parent)
    for mount in mounts:
        # A hierarchy that is mounted twice is one hierarchy.
        if (
            mount.version != 1
            or not _usable(mount, parent)
            or any(mount.controllers & other.controllers for other in found)
        ):
            continue
        base = mount.point if parts is not None else mount.own_path() or mount.point
        view = mount.point.rpartition("/")[2]
        found.append(cgroup_v1.Hierarchy(mount.controllers, view, base, parts or (), point=mount.point))
    return found


def _unified(v2: Mount | None, parts: tuple[str, ...] | None) -> list[cgroup_v1.Hierarchy]:
    """The v2 hierarchy beside v1 ones that hold all controllers that count."""
    if v2 is None:
        return []
    own = cgroup_v2.own_group(v2.own_path() or v2.point)
    # Only the root has no such file; that of a cgroup namespace is another group's.
    at_root = own == v2.point and Group(own).read("cgroup.type") is None
    return [cgroup_v1.Unified(v2.point if parts is not None else own, parts or (), at_root=at_root)]


def _names(hierarchies: Iterable[cgroup_v1.Hierarchy]) -> frozenset[str]:
    found = frozenset[str]().union(*(hierarchy.controllers for hierarchy in hierarchies))
    return frozenset(name for name in found if not name.startswith("name="))


def _usable(mount: Mount, parent: str | None) -> bool:
    return parent is not None or mount.own_path() is not None


def _controllers_v2(mount: Mount | None, parent: str | None) -> frozenset[str]:
    if mount is None:
        return frozenset()
    path = mount.point if parent is not None else cgroup_v2.own_group(mount.own_path() or mount.point)
    return frozenset((Group(path).read("cgroup.controllers") or "").split())


def _parts(parent: str | None) -> tuple[str, ...] | None:
    if parent is None:
        return None
    parts = tuple(part for part in parent.split("/") if part and part != ".")
    if ".." in parts:
        raise KernelError("use cgroup parent", parent, errno.EINVAL)
    return parts


def _unescape(field: str) -> str:
    """Undo the octal escapes of mountinfo: space, tab, newline and backslash."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\043", "#"), ("\\134", "\\")):
        field = field.replace(code, character)
    return field
