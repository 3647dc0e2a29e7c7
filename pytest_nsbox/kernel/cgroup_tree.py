"""Groups, the directories of a cgroup file system: make, write, read, kill, remove.

Sources: cgroups(7), Documentation/admin-guide/cgroup-v1/ and cgroup-v2.rst of the kernel.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time

from pytest_nsbox.policy.errors import KernelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

PREFIX = "nsbox-"
# An extended attribute, and not the memory of a session, tells that we made a parent group: of several sessions the
# last one to leave removes it, and so does the sweep after a SIGKILL.
MADE = "user.nsbox.made"
_MADE_TRUSTED = "trusted.nsbox.made"
# What a user without rights or a read-only mount gives: such a hierarchy is missing for us, and only a limit that needs
# it fails.
DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_BUSY = frozenset({errno.EBUSY, errno.ENOTEMPTY})
# What a path gives whose group was removed, and a file of it that was open already.
GONE = frozenset({errno.ENOENT, errno.ENODEV})
# While other sessions, the last in it, remove the parent that we are about to use.
MAKE_ATTEMPTS = 100
LOCKED_WITHIN = 2.0  # seconds
SIGKILL = 9  # the signal module costs the warden 5 ms of its start
_READ_SIZE = 16384


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
            # Whatever the umask is: nobody else may make groups in it.
            self.files.mkdir(self.path, 0o755)
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
            if error.errno in GONE or error.errno == errno.EOPNOTSUPP:
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
            if error.errno in GONE:
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
            # A threaded group has no list of processes.
            found.update(map(int, (group.read("cgroup.procs") or group.read("cgroup.threads") or "").split()))
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
                self.files.kill(pid, SIGKILL)
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
                if error.errno in GONE:
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
            except OSError as error:
                if error.errno not in GONE | {errno.ENODATA, errno.EOPNOTSUPP}:
                    raise _kernel_error("getxattr", self.path, error) from None
        return False


class Lock:
    """An exclusive flock on a group's directory, while what two sessions would do at once takes more than one step.

    No session needs more than milliseconds. But whoever can read the directory can lock it, and a session that somebody
    stopped holds it: after `LOCKED_WITHIN` we go on without.
    """

    def __init__(self, group: Group) -> None:
        self._group = group
        self._fd = -1

    def __enter__(self) -> None:
        self._fd = self._group.open("", os.O_RDONLY | os.O_DIRECTORY)
        deadline = time.monotonic() + LOCKED_WITHIN
        while time.monotonic() < deadline:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.001)
            else:
                return

    def __exit__(self, *exc: object) -> None:
        os.close(self._fd)


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
    """Remove those of the groups that a session made (`make_parents`) and none uses, innermost first.

    What fails is tried once more, and the error raised.
    """
    _each_twice(_remove_if_ours, reversed(chain))


def _remove_if_ours(group: Group) -> None:
    if not group.exists() or not group.is_made():
        return
    try:
        group.files.rmdir(group.path)
    except OSError as error:
        if error.errno not in _BUSY | GONE:
            raise _kernel_error("rmdir", group.path, error) from None


def remove_all(groups: Iterable[Group], patience: float = 2.0) -> None:
    """Remove all `groups`, also if some fail, and those that fail once more; then raise the first error."""
    _each_twice(lambda group: group.remove(patience), groups)


def _each_twice(remove: Callable[[Group], None], groups: Iterable[Group]) -> None:
    """Remove every group, with a second try, and raise the first error. A call that fails once so leaves nothing."""
    first: KernelError | None = None
    for group in groups:
        for _ in range(2):
            try:
                remove(group)
                break
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


def remove_parents_quietly(chain: Sequence[Group]) -> None:
    """Do what `remove_parents` does, while an error is on its way: that error is the one to tell."""
    try:
        remove_parents(chain)
    except KernelError:
        return


def _kernel_error(call: str, target: str, error: OSError) -> KernelError:
    return KernelError(call, target, error.errno or errno.EIO)
