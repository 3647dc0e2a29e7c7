"""A box's place in the cgroup trees, and the session that makes these places.

A *node* is a box's place: one group on v2, one per joined hierarchy on v1. A *session* holds one group per hierarchy,
`nsbox-<name>`, and makes the nodes inside it. What differs between v1 and v2 is in `cgroup_v1` and `cgroup_v2`.
"""

from __future__ import annotations

import errno
import os

from pytest_nsbox.kernel.cgroup_tree import DENIED, FILES, PREFIX, Files, Group, remove_all, remove_parents
from pytest_nsbox.policy.errors import BoxFailed, KernelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pytest_nsbox.kernel.cgroup_v1 import Hierarchy
    from pytest_nsbox.policy.limits import Write

_FIXES = {
    "memory.memsw.limit_in_bytes": "swap is not accounted; boot with swapaccount=1",
    "memory.swap.max": "swap is not accounted; boot with swapaccount=1",
}


_SCREEN = "screen"
# A JVM takes itself to be in no container unless it finds these too, with or without a limit.
_WANTED = frozenset({"cpu", "cpuset"})


class Node:
    """A box's place in the cgroup trees.

    attach  descriptors to write b"0" to, in order, in the process that shall live in the box. Each is opened for
            writing and close-on-exec; on v1 it is `tasks`, which a process with one thread may write without the
            kernel's global lock.
    views   (directory name below /sys/fs/cgroup, path to bind there) for the box's own view; the name is "" on v2.
    """

    __slots__ = ("_counters", "_groups", "_local", "attach", "name", "views")

    def __init__(
        self, name: str, groups: Sequence[tuple[str, Group]], counters: list[tuple[int, str]], local: frozenset[str]
    ) -> None:
        self.name = name
        self.attach: tuple[int, ...] = ()
        self.views = tuple((view, group.path) for view, group in groups)
        self._groups = tuple(group for _, group in groups)
        self._counters = counters
        self._local = local

    def open(self, file: str) -> None:
        """Open the descriptors for `attach`."""
        for group in self._groups:
            self.attach += (group.open(file, os.O_WRONLY),)

    def open_directory(self) -> int | None:
        """Return a new descriptor of a v2 group's directory, for clone3(CLONE_INTO_CGROUP); None on v1."""
        if not self.is_unified():
            return None
        return self._groups[0].open("", os.O_RDONLY | os.O_DIRECTORY)

    def read(self) -> dict[str, str]:
        """Return {counter file: its text} for the counters that this kernel has.

        The counters in `local` speak of one group alone (v1 events): there, each number is the sum over nested groups.
        """
        texts: dict[str, str] = {}
        for index, file in self._counters:
            group = self._groups[index]
            text = group.read(file)
            if text is None:
                continue
            if file in self._local and (below := group.children()):
                text = _sum_lines([text, *(nested.read(file) or "" for child in below for nested in child.walk())])
            texts[file] = text
        return texts

    def open_counter(self, file: str) -> int | None:
        """Open `file` of whichever group has it, for reading again and again; None if none has."""
        for group in self._groups:
            try:
                return group.open(file, os.O_RDONLY)
            except KernelError as error:
                if error.errno != errno.ENOENT:
                    raise
        return None

    def threads(self) -> list[int]:
        """Return every thread in the box's groups, as this process numbers them."""
        found: set[int] = set()
        for group in self._groups[-1:]:
            for nested in group.walk():
                text = nested.read("cgroup.threads" if self.is_unified() else "tasks")
                found.update(map(int, (text or "").split()))
        return sorted(found)

    def is_unified(self) -> bool:
        """Say if this is one group of v2."""
        return [view for view, _ in self.views] == [""]

    def reset_peaks(self) -> None:
        """Let the peak of memory begin anew, where the kernel has a file for that (v1); elsewhere it stays."""
        for index, file in self._counters:
            if file == "memory.max_usage_in_bytes":
                try:
                    self._groups[index].write(file, "0")
                except KernelError:
                    continue

    def pids(self) -> list[int]:
        """Return every process in the box's groups, as this process numbers them."""
        return sorted(set().union(*(group.pids() for group in self._groups)))

    def kill(self) -> bool:
        """Send SIGKILL to every process in the box's groups and return whether there was any."""
        found = False
        for group in self._groups:
            found |= group.kill()
        return found

    def close_fds(self) -> None:
        """Close the descriptors in `attach`. A second call does nothing."""
        fds, self.attach = self.attach, ()
        for fd in fds:
            os.close(fd)

    def paths(self) -> list[str]:
        """Return the directories of the box's groups."""
        return [group.path for group in self._groups]

    def remove(self, patience: float = 2.0) -> None:
        """Close the descriptors, kill what is left and remove the groups; wait at most `patience` seconds for it to go.

        All groups are tried; the first error is raised at the end.
        """
        self.close_fds()
        remove_all(self._groups, patience)


class Session:
    """The groups of one test session; see `cgroup.open_session`.

    version      1 or 2: which writes a limit takes. 2 where no hierarchy can be used; then each limit is an error
    controllers  those whose limits and counters a box can have
    problems     {controller: why it cannot be used, and the fix}
    beside       hierarchies that no limit needs
    screens      see `open_screens`
    screened     (directory name below /sys/fs/cgroup, path to bind there), as `Node.views`, of those screens that boxes
                 without a group of their own show
    """

    version = 2
    driver = "cgroupfs"

    def __init__(self, name: str, files: Files = FILES) -> None:
        self.name = PREFIX + name
        self.files = files
        self.controllers: frozenset[str] = frozenset()
        self.problems: dict[str, str] = {}
        self.beside: list[Hierarchy] = []
        self.screens: tuple[int, ...] = ()
        self.screened: list[tuple[str, str]] = []

    def open_screens(self) -> None:
        """Make a screen in each hierarchy that not every box has a group in: an empty group, which belongs to root.

        `screens` are descriptors to write b"0" to, in the process that shall live in a box, before those of its node.
        Otherwise the host's own group were the root of the box's cgroup namespace there: in a mount of its own the box
        would see all groups of the host, and those that belong to ordinary users (systemd gives them some) it could
        freeze and kill. Where we may not make groups there is no screen; any other failure raises KernelError.
        """
        for hierarchy in self.unjoined():
            try:
                group = hierarchy.join(self.name, self.files).child(_SCREEN)
                group.make()
            except KernelError as error:
                if error.errno in DENIED:
                    continue
                raise
            hierarchy.fill(group)
            self.screens += (group.open(hierarchy.door, os.O_WRONLY),)
            # On v2 the box's one group is all that lies there.
            if hierarchy.controllers & _WANTED and self.version == 1:
                self.screened.append((hierarchy.view, group.path))

    def unjoined(self) -> list[Hierarchy]:
        """Return the hierarchies that not every box has a group in."""
        return self.beside

    def make(self, box: str, writes: Sequence[Write], owner: int | None, counted: frozenset[str] = frozenset()) -> Node:
        """Make the groups of one box, write its limits and return the node with its descriptors open.

        What controllers in `counted` count is wanted besides, where they can be used.

        `owner` (host user and group id) becomes the owner of the directory, so that the box can make groups of its own,
        but of no limit. Raises BoxFailed if the controller of a limit cannot be used, else KernelError; then nothing
        that was made is left.
        """
        for write in writes:
            self.require(write.controller)
        del owner, counted
        return Node(box, (), [], frozenset())

    def close(self) -> None:
        """Remove the session's groups with everything inside, and the parents that a session made, if empty."""
        self.close_hierarchies(self.beside)

    def close_hierarchies(self, hierarchies: Iterable[Hierarchy]) -> None:
        """Do what `close` does, in v1 hierarchies, and close the screens."""
        for fd in self.screens:
            os.close(fd)
        self.screens = ()
        groups: list[Group] = []
        parents: list[Group] = []
        for hierarchy in hierarchies:
            if hierarchy.group is not None:
                groups.append(hierarchy.group)
                parents += hierarchy.chain(self.files)
                hierarchy.group = None
        try:
            remove_all(groups)
        finally:
            remove_parents(parents)

    def freezer(self, node: Node) -> Group:
        """Return the group that `node` is frozen by: on v1 one of its own in that hierarchy, which is not made yet.
        Raises BoxFailed if there is none.
        """
        if not node.views:
            raise BoxFailed(f"it has no control group: {self.problems.get('', 'no cgroup file system is mounted')}")
        return Group(node.views[0][1], self.files)

    def require(self, controller: str) -> None:
        """Raise BoxFailed, with the reason and the fix, if `controller` cannot be used."""
        if controller in self.controllers:
            return
        why = self.problems.get(controller) or self.problems.get("")
        if why is None:
            from pytest_nsbox.kernel.cgroup_delegation import why_absent

            why = why_absent(controller, unified=self.version == 2)
        raise BoxFailed(f"the cgroup controller {controller} cannot be used: {why}")


def write_limit(group: Group, write: Write) -> None:
    """Write one limit, or what stands in for it where the kernel has no such file."""
    try:
        group.write(write.file, write.value)
    except KernelError as error:
        if error.errno == errno.EINVAL and write.file == "cpu.cfs_quota_us":
            # On v2 the stricter limit holds; v1 wants every group to have less than the one above.
            raise BoxFailed(f"{error} (a group above it allows less: lower cpu=, or raise its quota)") from None
        if error.errno != errno.ENOENT:
            raise
        if write.fallback is None:
            fix = _FIXES.get(write.file, "it is not built into this kernel")
            raise BoxFailed(f"the kernel has no {group.path}/{write.file}: {fix}") from None
        for instead in write.fallback:
            write_limit(group, instead)


def _sum_lines(texts: Iterable[str]) -> str:
    """Add up texts of `name number` lines, name by name."""
    total: dict[str, int] = {}
    for text in texts:
        for line in text.splitlines():
            name, _, number = line.rpartition(" ")
            total[name] = total.get(name, 0) + int(number)
    return "".join(f"{name} {number}\n" for name, number in total.items())
