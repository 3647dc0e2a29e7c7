"""Processes: clone3, pidfds, prctl, ids and capabilities of a thread. Source: clone(2), pidfd_open(2), prctl(2),
capabilities(7).
"""

from __future__ import annotations

import errno
import select
import struct
import sys

from pytest_nsbox.kernel import libc
from pytest_nsbox.kernel.signals import signal
from pytest_nsbox.policy.errors import KernelError
from pytest_nsbox.real import os

CLONE_PIDFD = 0x00001000
_CLONE_PARENT = 0x00008000
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NAME = 15
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4

_KEYCTL_JOIN_SESSION_KEYRING = 1
# Older than the numbers that all architectures share.
_SYS_KEYCTL = {"x86_64": 250, "aarch64": 219, "riscv64": 219, "loongarch64": 219, "ppc64le": 271, "s390x": 280}

CAP_SYS_ADMIN = 21
_CAPABILITY_VERSION = 0x20080522  # _LINUX_CAPABILITY_VERSION_3


def clone3(flags: int) -> tuple[int, int]:
    """Fork, the child in new namespaces of the kinds in `flags`; return (pid, pidfd), in the child (0, -1).

    The child must use nothing that Python's own fork would have repaired (threads, at-fork handlers) and must leave by
    os._exit.
    """
    pidfd = libc.Buffer(bytes(4))
    arguments = clone_arguments(flags | CLONE_PIDFD, pidfd.address, signal.SIGCHLD)
    pid = libc.syscall("clone3", hex(flags), libc.SYS_CLONE3, arguments, len(arguments))
    if pid == 0:
        return 0, -1
    return pid, pidfd.word()


def fork_sibling(flags: int = 0) -> int:
    """Fork, the new process a child of our own parent, in new namespaces of the kinds in `flags`, and born in the pid
    namespace that our children go to; return its pid, in it 0. What holds for the child of `clone3` holds here, except
    that it may live on as an ordinary process.
    """
    # The exit signal is ours: the kernel wants none with this flag.
    arguments = clone_arguments(flags | _CLONE_PARENT)
    return libc.syscall("clone3", f"sibling {flags:#x}", libc.SYS_CLONE3, arguments, len(arguments))


def clone_arguments(flags: int, pidfd: int = 0, exit_signal: int = 0) -> bytes:
    """Return struct clone_args: flags, pidfd (address), child_tid, parent_tid, exit_signal, stack, stack size, tls."""
    return struct.pack("=8Q", flags, pidfd, 0, 0, exit_signal, 0, 0, 0)


def kill(pidfd: int) -> None:
    """Kill the process of `pidfd`; one that is gone is no error."""
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        return


def reap(pidfd: int) -> bool:
    """Collect the exit status of our child `pidfd` if it has ended; say if it is gone."""
    try:
        return os.waitid(_P_PIDFD, pidfd, os.WEXITED | os.WNOHANG) is not None
    except ChildProcessError:
        return True


# Python says P_PIDFD since 3.9, but not on every platform that a type checker thinks of.
_P_PIDFD: int = getattr(os, "P_PIDFD", 3)


def die_with_parent() -> None:
    """Have the kernel kill us when the thread that made us ends. A change of ids or capabilities undoes this."""
    libc.call("prctl", "PR_SET_PDEATHSIG", _PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def set_dumpable(*, dumpable: bool) -> None:
    """Allow or forbid other processes of our ids to look into us (ptrace, /proc/PID/*)."""
    libc.call("prctl", "PR_SET_DUMPABLE", _PR_SET_DUMPABLE, int(dumpable), 0, 0, 0)


def ignore_ended_children() -> None:
    """Have the kernel itself reap our children that end, and orphans that become ours."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)


def set_name(name: str) -> None:
    """Set what ps shows as our command: 15 bytes."""
    libc.call("prctl", "PR_SET_NAME", _PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def become(uid: int, gid: int, groups: tuple[int, ...] = ()) -> None:
    """Take these ids for good, as seen in our user namespace."""
    for call, target, function, arguments in (
        ("setgroups", ",".join(map(str, groups)), os.setgroups, (groups,)),
        ("setresgid", str(gid), os.setresgid, (gid, gid, gid)),
        ("setresuid", str(uid), os.setresuid, (uid, uid, uid)),
    ):
        try:
            function(*arguments)
        except OSError as error:
            raise KernelError(call, target, error.errno or 0) from None


def set_fs_ids(uid: int, gid: int) -> None:
    """Set the ids that files are made and accessed with, and keep the capabilities that the kernel takes away with
    fsuid 0.
    """
    libc.call("setfsuid", str(uid), uid)
    libc.call("setfsgid", str(gid), gid)


def has_capability(number: int) -> bool:
    """Say if capability `number` is effective in this process (within its own user namespace)."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> number & 1)
    return False


def drop_capabilities() -> None:
    """Give up every capability, as an ordinary user has none."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    libc.call("capset", "none", header, bytes(24))


def bound_capabilities(mask: int) -> None:
    """Have no program that this process starts get a capability besides those in `mask`. Needs CAP_SETPCAP."""
    libc.call("prctl", "PR_CAP_AMBIENT", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    for number in range(64):
        if mask >> number & 1:
            continue
        try:
            libc.call("prctl", "PR_CAPBSET_DROP", _PR_CAPBSET_DROP, number, 0, 0, 0)
        except KernelError as error:
            # The first that this kernel does not know.
            if error.errno == errno.EINVAL:
                return
            raise


def keep_capabilities(mask: int) -> None:
    """Give up every capability besides those in `mask`, and for good what set-user-id programs would give."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    data = libc.Buffer(bytes(24))
    libc.call("capget", "self", header, data.address)
    # Two words each of effective, permitted, inheritable, one after another: low words first, then high ones.
    effective, permitted, _, effective_high, permitted_high, _ = struct.unpack("=6I", data.content())
    low, high = mask & 0xFFFFFFFF, mask >> 32
    kept = struct.pack("=6I", effective & low, permitted & low, 0, effective_high & high, permitted_high & high, 0)
    libc.call("capset", hex(mask), header, kept)
    libc.call("prctl", "PR_SET_NO_NEW_PRIVS", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


class Capabilities:
    """The capability sets of this thread as they were when this was made, to be put back after a change of ids."""

    def __init__(self) -> None:
        # pid 0 = this thread; two words each of effective, permitted, inheritable.
        self._header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
        self._data = libc.Buffer(bytes(24))
        libc.call("capget", "self", self._header, self._data.address)

    def restore(self) -> None:
        """Set all three sets again; possible as long as the permitted set was kept."""
        libc.call("capset", "self", self._header, self._data.address)


def leave_session_keyring() -> None:
    """Exchange the session keyring, which a fork inherits, for a new and empty one. Source: keyctl(2).

    Keys have no namespace: who possesses the keyring of pytest's login reads and changes what is in it, wherever it is.
    """
    number = _SYS_KEYCTL.get(os.uname().machine)
    if number is None or sys.maxsize < 1 << 32:
        return
    try:
        libc.syscall("keyctl", "new session keyring", number, _KEYCTL_JOIN_SESSION_KEYRING, 0)
    except KernelError as error:
        # Not built into the kernel, or forbidden by a container's filter, which stays in force in the box.
        if error.errno not in (errno.ENOSYS, errno.EPERM):
            raise


def keep_oom_score() -> None:
    """Keep processes that we fork, and that lose their rights, from getting a lower score than ours is now when the
    kernel looks for a process to kill: set with CAP_SYS_RESOURCE, it is the lowest from then on. Source: proc(5).
    """
    try:
        with open("/proc/self/oom_score_adj", "r+", encoding="ascii") as file:
            score = file.read()
            file.seek(0)
            file.write(score)
    except OSError:
        # As low as ours they may have it; a lower one they could have had without us too.
        return


def has_terminal_to_type_into() -> bool:
    """Say if we have a controlling terminal that the kernel lets us put input into (TIOCSTI, ioctl_tty(2))."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    try:
        with open("/proc/sys/dev/tty/legacy_tiocsti", encoding="ascii") as file:
            return file.read().strip() != "0"
    except OSError:
        # Before Linux 6.2.
        return True


def kernel_version() -> tuple[int, int]:
    """Return what the kernel says that it is: (6, 1) for 6.1.0-13-amd64, (5, 19) for 5.19-rc1."""
    major, _, rest = os.uname().release.partition(".")
    minor = rest[: len(rest) - len(rest.lstrip("0123456789"))]
    return int(major), int(minor or 0)


def close_all_but(keep: tuple[int, ...]) -> None:
    """Close every descriptor but `keep`."""
    first = 0
    for fd in (*sorted(keep), 1 << 31):
        if fd > first:
            last = fd - 1 if fd < 1 << 31 else 0xFFFFFFFF
            libc.syscall("close_range", f"{first}-{last}", libc.SYS_CLOSE_RANGE, first, last, 0)
        first = fd + 1


def open_pidfd(pid: int) -> int:
    """Open a pidfd of `pid`."""
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        raise KernelError("pidfd_open", str(pid), error.errno or 0) from None


def is_stopped(pid: int) -> bool:
    """Say if `pid` was stopped by a signal. Source: proc_pid_stat(5)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1] == b"T"
    except OSError:
        return False


def has_ended(pidfd: int) -> bool:
    """Say if the process of `pidfd` has ended, whoever's child it is."""
    waiting = select.poll()
    waiting.register(pidfd, select.POLLIN)
    return bool(waiting.poll(0))
