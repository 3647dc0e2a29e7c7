"""What cgroup v1 and v2 share: directories in a cgroup file system, a box's node, a session's groups.

A *group* is one directory of one hierarchy. A *node* is a box's place: one group on v2, one per joined hierarchy on v1.
A *session* holds one group per hierarchy, `nsbox-<name>`, and makes the nodes inside it.

Sources: cgroups(7), Documentation/admin-guide/cgroup-v1/ and cgroup-v2.rst of the kernel.
"""

from __future__ import annotations

import errno
import os
import signal
import time

from pytest_nsbox.policy.errors import BoxFailed, KernelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pytest_nsbox.policy.limits import Write

PREFIX = "nsbox-"
# An extended attribute, and not the memory of a session, tells that we made a parent group: of several sessions the
# last one to leave removes it, and so does the sweep after a SIGKILL.
MADE = "user.nsbox.made"
_MADE_TRUSTED = "trusted.nsbox.made"
# What a user without rights or a read-only mount gives: such a hierarchy is missing for us, and only a limit that needs
# it fails.
DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_BUSY = frozenset({errno.EBUSY, errno.ENOTEMPTY})
_GONE = frozenset({errno.ENOENT, errno.ENODEV})
_READ_SIZE = 16384
_FIXES = {
    "memory.memsw.limit_in_bytes": "swap is not accounted; boot with swapaccount=1",
    "memory.swap.max": "swap is not accounted; boot with swapaccount=1",
}


class Files:
    """The system calls on cgroup files. Tests put an object in its place that fails."""

    open = staticmethod(os.open)
    close = staticmethod(os.close)
    read = staticmethod(os.read)
    write = staticmethod(os.write)
    mkdir = staticmethod(os.mkdir)
    rmdir = staticmethod(os.rmdir)
    chown = staticmethod(os.chown)
    setxattr = staticmethod(os.setxattr)
    getxattr = staticmethod(os.getxattr)
    kill = staticmethod(os.kill)


FILES = Files()


class Group:
    """One directory in a cgroup hierarchy."""

    __slots__ = ("files", "path")

    def __init__(self, path: str, files: Files = FILES) -> None:
        self.path = path
        self.files = files

    def __repr__(self) -> str:
        return f"Group({self.path!r})"

    def child(self, name: str) -> Group:
        return Group(f"{self.path}/{name}", self.files)

    def exists(self) -> bool:
        return os.path.isdir(self.path)

    def make(self) -> None:
        try:
            self.files.mkdir(self.path)
        except OSError as error:
            raise _kernel_error("mkdir", self.path, error) from None

    def write(self, file: str, value: str) -> None:
        path = f"{self.path}/{file}"
        try:
            fd = self.files.open(path, os.O_WRONLY)
            try:
                self.files.write(fd, value.encode())
            finally:
                self.files.close(fd)
        except OSError as error:
            raise _kernel_error(f"write {value!r} to", path, error) from None

    def read(self, file: str) -> str | None:
        """Return the text of `file`, or None where the kernel has no such file or the group is gone."""
        path = f"{self.path}/{file}"
        try:
            fd = self.files.open(path, os.O_RDONLY)
            try:
                text = self.files.read(fd, _READ_SIZE)
                if len(text) < _READ_SIZE:
                    return text.decode()
                while more := self.files.read(fd, _READ_SIZE):
                    text += more
                return text.decode()
            finally:
                self.files.close(fd)
        except OSError as error:
            # EOPNOTSUPP: pressure files when PSI is off, cgroup.procs of a threaded group.
            if error.errno in _GONE or error.errno == errno.EOPNOTSUPP:
                return None
            raise _kernel_error("read", path, error) from None

    def open(self, file: str, flags: int) -> int:
        path = f"{self.path}/{file}" if file else self.path
        try:
            return self.files.open(path, flags | os.O_CLOEXEC)
        except OSError as error:
            raise _kernel_error("open", path, error) from None

    def give(self, owner: int, files: Iterable[str]) -> None:
        """Make `owner` (user and group id) the owner of the directory and of `files`; limits stay root's."""
        path = self.path
        try:
            self.files.chown(path, owner, owner)
            for file in files:
                path = f"{self.path}/{file}"
                self.files.chown(path, owner, owner)
        except OSError as error:
            raise _kernel_error(f"chown to {owner}", path, error) from None

    def children(self) -> list[Group]:
        try:
            # One link for each child group: most groups have none, and a listing costs 50 us.
            if os.stat(self.path).st_nlink <= 2:
                return []
            with os.scandir(self.path) as entries:
                return [self.child(entry.name) for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError as error:
            if error.errno in _GONE:
                return []
            raise _kernel_error("list", self.path, error) from None

    def walk(self) -> Iterator[Group]:
        """Yield this group and everything below it, parents first."""
        yield self
        for group in self.children():
            yield from group.walk()

    def pids(self) -> set[int]:
        """Return the processes in this group and below it, as far as this pid namespace can name them."""
        found: set[int] = set()
        for group in self.walk():
            found.update(map(int, (group.read("cgroup.procs") or "").split()))
        # A process of a foreign pid namespace reads as 0, and kill(0) would be our own process group.
        found.discard(0)
        return found

    def kill(self) -> bool:
        """Send SIGKILL to everything in here and return whether there was anything.

        A process that forks meanwhile can have children left: call again until it returns False.
        """
        for group in self.walk():
            # A frozen v1 task dies only once it is thawed.
            if group.read("freezer.self_freezing") not in (None, "0\n"):
                group.write("freezer.state", "THAWED")
        pids = self.pids() - {os.getpid()}
        for pid in pids:
            try:
                self.files.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            except OSError as error:
                raise _kernel_error("kill", str(pid), error) from None
        return bool(pids)

    def remove(self, patience: float = 2.0) -> None:
        """Remove this group with everything below it; kill what lives there.

        `patience`: seconds to wait for killed processes to leave. A group that is gone already is a success.
        """
        deadline = time.monotonic() + patience
        pause = 0.0001
        while True:
            try:
                self.files.rmdir(self.path)
                return
            except OSError as error:
                if error.errno in _GONE:
                    return
                if error.errno not in _BUSY or time.monotonic() > deadline:
                    raise _kernel_error("rmdir", self.path, error) from None
            for group in self.children():
                group.remove(max(0.0, deadline - time.monotonic()))
            if self.kill():
                # The kernel takes a task out of its group only while it exits, some time after the signal.
                time.sleep(pause)
                pause = min(pause * 2, 0.02)
            elif pause < 0.001:
                pause *= 2
            else:
                time.sleep(pause)

    def mark_made(self) -> None:
        """Note on the group itself that a session made it."""
        try:
            try:
                self.files.setxattr(self.path, MADE, b"1")
            except OSError as error:
                # Before 5.7 cgroups had trusted attributes only.
                if error.errno != errno.EOPNOTSUPP:
                    raise
                self.files.setxattr(self.path, _MADE_TRUSTED, b"1")
        except OSError as error:
            raise _kernel_error("setxattr", self.path, error) from None

    def is_made(self) -> bool:
        for name in (MADE, _MADE_TRUSTED):
            try:
                if self.files.getxattr(self.path, name) == b"1":
                    return True
            except OSError:
                pass
        return False


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

    def open_directory(self) -> int:
        """Return a descriptor of the (first) group's directory, for clone3(CLONE_INTO_CGROUP) on v2."""
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

    def remove(self, patience: float = 2.0) -> None:
        """Close the descriptors, kill what is left and remove the groups; wait at most `patience` seconds for it to go.

        All groups are tried; the first error is raised at the end.
        """
        self.close_fds()
        remove_all(self._groups, patience)


class Session:
    """The groups of one test session; see `cgroup.open_session`.

    version      1 or 2, or 0 where no hierarchy can be used
    controllers  those whose limits and counters a box can have
    problems     {controller: why it cannot be used, and the fix}
    """

    version = 0
    driver = "cgroupfs"

    def __init__(self, name: str, files: Files = FILES) -> None:
        self.name = PREFIX + name
        self.files = files
        self.controllers: frozenset[str] = frozenset()
        self.problems: dict[str, str] = {}

    def make(self, box: str, writes: Sequence[Write], owner: int | None) -> Node:
        """Make the groups of one box, write its limits and return the node with its descriptors open.

        `owner` (host user and group id) becomes the owner of the directory, so that the box can make groups of its own,
        but of no limit. Raises BoxFailed if the controller of a limit cannot be used, else KernelError; then nothing
        that was made is left.
        """
        for write in writes:
            self.require(write.controller)
        del owner
        return Node(box, (), [], frozenset())

    def close(self) -> None:
        """Remove the session's groups with everything inside, and the parents that a session made, if empty."""

    def require(self, controller: str) -> None:
        """Raise BoxFailed, with the reason and the fix, if `controller` cannot be used."""
        if controller in self.controllers:
            return
        why = self.problems.get(controller) or self.problems.get("") or "no mounted hierarchy has it; see /proc/cgroups"
        raise BoxFailed(f"the cgroup controller {controller} cannot be used: {why}")


def write_limit(group: Group, write: Write) -> None:
    """Write one limit, or what stands in for it where the kernel has no such file."""
    try:
        group.write(write.file, write.value)
    except KernelError as error:
        if error.errno != errno.ENOENT:
            raise
        if write.fallback is None:
            fix = _FIXES.get(write.file, "it is not built into this kernel")
            raise BoxFailed(f"the kernel has no {group.path}/{write.file}: {fix}") from None
        for instead in write.fallback:
            write_limit(group, instead)


def chain_of(base: Group, parts: Sequence[str]) -> list[Group]:
    """Return the groups `parts`, each inside the one before and the first inside `base`."""
    chain: list[Group] = []
    for part in parts:
        chain.append((chain[-1] if chain else base).child(part))
    return chain


def make_parents(chain: Sequence[Group]) -> None:
    """Make the groups of `chain` that are missing, and mark them as made by us."""
    for group in chain:
        if group.exists():
            continue
        try:
            group.make()
        except KernelError as error:
            if error.errno != errno.EEXIST:
                raise
            # Another session was faster; the mark is its business.
            continue
        try:
            group.mark_made()
        except KernelError:
            remove_quietly([group])
            raise


def remove_parents(chain: Sequence[Group]) -> None:
    """Remove the groups that a session made (`make_parents`), innermost first, up to the first that is still in use."""
    for group in reversed(chain):
        if not group.exists():
            continue
        if not group.is_made():
            return
        try:
            group.files.rmdir(group.path)
        except OSError as error:
            if error.errno in _BUSY:
                return
            if error.errno not in _GONE:
                raise _kernel_error("rmdir", group.path, error) from None


def remove_all(groups: Iterable[Group], patience: float = 2.0) -> None:
    """Remove all `groups`, also if some fail; then raise the first error."""
    first: KernelError | None = None
    for group in groups:
        try:
            group.remove(patience)
        except KernelError as error:
            first = first or error
    if first is not None:
        raise first


def remove_quietly(groups: Iterable[Group]) -> None:
    """Undo, while an error is on its way: that error is the one to tell, and `Session.close` tries once more."""
    try:
        remove_all(groups)
    except KernelError:
        return


def _sum_lines(texts: Iterable[str]) -> str:
    """Add up texts of `name number` lines, name by name."""
    total: dict[str, int] = {}
    for text in texts:
        for line in text.splitlines():
            name, _, number = line.rpartition(" ")
            total[name] = total.get(name, 0) + int(number)
    return "".join(f"{name} {number}\n" for name, number in total.items())


def _kernel_error(call: str, target: str, error: OSError) -> KernelError:
    return KernelError(call, target, error.errno or errno.EIO)
