"""Inits that are no forks of the warden: what `init.prepare` does, recorded once as a program of system calls for all
boxes that differ in paths only (`kernel.program`).
"""

from __future__ import annotations

import os
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_STREAM, socketpair

from pytest_nsbox.kernel import libc, mount, net, process, program
from pytest_nsbox.kernel.line import be_patient
from pytest_nsbox.kernel.namespaces import NEWTIME
from pytest_nsbox.kernel.program import LINE, Loaded, Program, Slot, Starter
from pytest_nsbox.kernel.signals import signal
from pytest_nsbox.policy.errors import KernelError
from pytest_nsbox.policy.plan import Protect, SetClocks
from pytest_nsbox.warden import init

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_nsbox.policy.plan import Plan

_MOST_PROGRAMS = 16
_PATIENCE = 5.0  # seconds, for the trial
_SIG_IGN = 1


class Recorder:
    """The doors of an init, for a program to go through."""

    def __init__(self) -> None:
        self.program = Program()

    def ignore_ended_children(self) -> None:
        """See process.ignore_ended_children."""
        # struct sigaction: handler, flags, restorer, mask
        action = bytes([_SIG_IGN]).ljust(32, b"\0")
        self.program.add("sigaction", "SIGCHLD", program.SYS_RT_SIGACTION, int(signal.SIGCHLD), action, 0, 8)

    def close_all_but(self, keep: tuple[int, ...]) -> None:
        """Do nothing: it begins with no others."""

    def set_name(self, name: str) -> None:
        """Leave it to the program that waits."""

    def await_go(self, control: int, word: bytes) -> None:
        """See Doors; with the warden the line ends, and so does the program."""
        self.program.add("read", "line", program.SYS_READ, control, bytes(len(word)), len(word), least=len(word))

    def loopback_up(self) -> None:
        """See net.loopback_up."""
        sock = self.program.open("socket", "AF_INET", program.SYS_SOCKET, *net.ANY_SOCKET, 0)
        self.program.add("ioctl SIOCSIFFLAGS", "lo", program.SYS_IOCTL, sock, net.SIOCSIFFLAGS, net.LOOPBACK_UP)
        self.program.close(sock)

    def set_hostname(self, name: str) -> None:
        """See Doors."""
        text = name.encode()
        self.program.add("sethostname", name, program.SYS_SETHOSTNAME, text, len(text))

    def become(self, uid: int, gid: int) -> None:
        """See process.become."""
        self.program.add("setgroups", "", program.SYS_SETGROUPS, 0, 0)
        self.program.add("setresgid", str(gid), program.SYS_SETRESGID, gid, gid, gid)
        self.program.add("setresuid", str(uid), program.SYS_SETRESUID, uid, uid, uid)

    def new_mount(
        self, fstype: str, options: Sequence[tuple[str, str | None]] = (), attributes: int = 0, target: str = ""
    ) -> int:
        """See mount.new_mount."""
        call = f"mount {fstype}"
        fs = self.program.open(call, target, libc.SYS_FSOPEN, fstype.encode(), mount.FSOPEN_CLOEXEC)
        for words in mount.configurations(options):
            self.program.add(call, target, libc.SYS_FSCONFIG, fs, *words)
        made = self.program.open(call, target, libc.SYS_FSMOUNT, fs, mount.FSMOUNT_CLOEXEC, attributes)
        self.program.close(fs)
        return made

    def clone_tree(self, path: str, *, recursive: bool = False) -> int:
        """See mount.clone_tree."""
        words = mount.AT_FDCWD, _text(path), mount.clone_flags(recursive=recursive)
        return self.program.open("open_tree", path, libc.SYS_OPEN_TREE, *words)

    def attach(self, mounted: int, target: str) -> None:
        """See mount.attach."""
        words = mounted, b"", mount.AT_FDCWD, _text(target), mount.MOVE_MOUNT_F_EMPTY_PATH
        self.program.add("move_mount", target, libc.SYS_MOVE_MOUNT, *words)

    def set_attributes(self, mounted: int, add: int, *, target: str) -> None:
        """See mount.set_attributes."""
        attributes = mount.attributes_of(add)
        words = mounted, b"", mount.AT_EMPTY_PATH, attributes, len(attributes)
        self.program.add("mount_setattr", target, libc.SYS_MOUNT_SETATTR, *words)

    def change_directory(self, where: int | str) -> None:
        """See Doors."""
        if isinstance(where, int):
            self.program.add("chdir", str(where), program.SYS_FCHDIR, where)
        else:
            self.program.add("chdir", where, program.SYS_CHDIR, _text(where))

    def pivot_here(self) -> None:
        """See mount.pivot_here."""
        self.program.add("pivot_root", ".", program.SYS_PIVOT_ROOT, b".", b".")
        self.program.add("umount2", ".", program.SYS_UMOUNT2, b".", mount.MNT_DETACH)

    def close(self, fd: int) -> None:
        """Leave it to the kernel, which closes them all when the program that waits is executed."""

    def set_dumpable(self, *, dumpable: bool) -> None:
        """Never: `Recorded.can` says no before."""
        raise NotImplementedError

    def unshare(self, flags: int) -> None:
        """Never: `Recorded.can` says no before."""
        raise NotImplementedError

    def set_clock_offsets(self, monotonic: float, boottime: float) -> None:
        """Never: `Recorded.can` says no before."""
        raise NotImplementedError


def _text(path: str) -> bytes | Slot:
    return path if isinstance(path, Slot) else os.fsencode(path)


class Running:
    """A program that an init runs."""

    __slots__ = ("_pool", "loaded")

    def __init__(self, pool: list[Loaded]) -> None:
        self._pool = pool
        self.loaded = pool.pop()

    def give_back(self) -> None:
        """The init has done with it."""
        self._pool.append(self.loaded)


class Recorded:
    """The programs of one warden's inits."""

    def __init__(self) -> None:
        self._starter: Starter | None = None
        self._tried = False
        # By what they are for: what is recorded, and where it is loaded and does not run.
        self._programs: dict[object, tuple[Program, list[Loaded]]] = {}

    def can(self, plan: Plan) -> bool:
        """Say if an init of `plan` can be one of these. Others write to files, or look before they act."""
        if not plan.shifted or plan.live or any(isinstance(op, (Protect, SetClocks)) for op in plan.init):
            return False
        if not self._tried:
            self._tried = True
            self._starter = try_out()
        return self._starter is not None

    def start(self, plan: Plan, flags: int, line: int, place: str, shown: init.Shown) -> tuple[int, int, Running]:
        """Start an init as `init.run` is one; return (pid, pidfd) and what it runs. Raises KernelError."""
        assert self._starter is not None
        names = tuple(name for name, _ in shown.cgroups), tuple(name for name, _ in shown.screens)
        key = (plan.init, *names)
        recorded, pool = self._programs.get(key) or self._record(key, plan, *names)
        if not pool:
            pool.append(Loaded(recorded))
        running = Running(pool)
        paths = {str(index): path for index, (_, path) in enumerate((*shown.cgroups, *shown.screens))}
        try:
            pid, pidfd = self._starter.start(flags, running.loaded, {"line": line, "place": place, **paths})
        except KernelError:
            running.give_back()
            raise
        return pid, pidfd, running

    def _record(
        self, key: object, plan: Plan, cgroups: tuple[str, ...], screens: tuple[str, ...]
    ) -> tuple[Program, list[Loaded]]:
        recorder = Recorder()
        views = tuple((name, Slot(str(index))) for index, name in enumerate((*cgroups, *screens)))
        shown = init.Shown(views[: len(cgroups)], views[len(cgroups) :])
        init.prepare(recorder, plan, LINE, Slot("place"), shown)
        recorder.program.wait()
        if len(self._programs) == _MOST_PROGRAMS:
            del self._programs[next(iter(self._programs))]
        self._programs[key] = recorder.program, []
        return self._programs[key]

    def close(self) -> None:
        """No more will be started."""
        if self._starter is not None:
            self._starter.close()
            self._starter = None


def try_out() -> Starter | None:
    """Return a starter if it works here: kernels are built, and processes watched, in many ways."""
    recorded = Program()
    recorded.wait()
    try:
        starter = Starter()
    except KernelError:
        return None
    if not _works(starter, Loaded(recorded)):
        starter.close()
        return None
    return starter


def _works(starter: Starter, loaded: Loaded) -> bool:
    has_clocks = os.path.exists("/proc/self/ns/time")
    ours, theirs = socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
    try:
        pid, pidfd = starter.start(NEWTIME if has_clocks else 0, loaded, {"line": theirs.fileno()})
        theirs.close()
        try:
            be_patient(ours, _PATIENCE)
            return ours.recv(1) == program.READY and (not has_clocks or _is_in_its_clocks(pid))
        finally:
            process.kill(pidfd)
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
            os.close(pidfd)
    except (KernelError, OSError):
        return False
    finally:
        theirs.close()
        ours.close()


def _is_in_its_clocks(pid: int) -> bool:
    """Say if `pid` is in the time namespace that was made with it: elsewhere only its children are."""
    return os.readlink(f"/proc/{pid}/ns/time") == os.readlink(f"/proc/{pid}/ns/time_for_children")
