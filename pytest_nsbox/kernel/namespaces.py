"""Namespaces: flags, leaving, entering, and the id maps of a user namespace. Source: namespaces(7), user_namespaces(7),
time_namespaces(7).
"""

from __future__ import annotations

import os

from pytest_nsbox.kernel import libc
from pytest_nsbox.policy.errors import KernelError

NEWTIME = 0x00000080
NEWNS = 0x00020000
NEWCGROUP = 0x02000000
NEWUTS = 0x04000000
NEWIPC = 0x08000000
NEWUSER = 0x10000000
NEWPID = 0x20000000
NEWNET = 0x40000000

# Names of the files below /proc/PID/ns, in the order in which a process can enter them.
FILES = {
    NEWUSER: "user",
    NEWNS: "mnt",
    NEWUTS: "uts",
    NEWIPC: "ipc",
    NEWNET: "net",
    NEWCGROUP: "cgroup",
    NEWPID: "pid",
    NEWTIME: "time",
}


def unshare(flags: int) -> None:
    """Put the calling thread into new namespaces of the kinds in `flags`."""
    _call("unshare", flags)


def setns(fd: int, flags: int) -> None:
    """Enter the namespaces of the kinds in `flags`: those of a process (a pidfd) or the one that `fd` is open on."""
    _call("setns", flags, fd)


def _call(name: str, flags: int, *arguments: int) -> None:
    """Every test's process gets here, and next to none of them needs the names."""
    try:
        libc.call(name, "", *arguments, flags)
    except KernelError as error:
        raise KernelError(name, names(flags), error.errno) from None


def names(flags: int) -> str:
    """Return the names of the namespaces in `flags`, for an error's text."""
    return ",".join(name for flag, name in FILES.items() if flags & flag) or hex(flags)


def open_namespace(pid: int | str, name: str) -> int:
    """Open namespace `name` (a file of /proc/PID/ns) of process `pid`; the descriptor is not inherited by programs."""
    path = f"/proc/{pid}/ns/{name}"
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise KernelError("open", path, error.errno or 0) from None


def write_maps(pid: int, uid_map: str, gid_map: str) -> None:
    """Write the id maps of the user namespace that `pid` was created in; each only once."""
    for name, content in (("uid_map", uid_map), ("gid_map", gid_map)):
        write_proc(f"/proc/{pid}/{name}", content)


def write_proc(path: str, content: str) -> None:
    """Write a file of /proc in one go, as the kernel wants it."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, content.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise KernelError("write", path, error.errno or 0) from None


def read_id_map(pid: int | str = "self", name: str = "uid_map") -> tuple[tuple[int, int, int], ...]:
    """Return the id map `name` of process `pid`: rows of first id inside, first id outside, number of ids."""
    with open(f"/proc/{pid}/{name}", encoding="ascii") as file:
        return tuple(
            (int(inside), int(outside), int(count)) for inside, outside, count in (line.split() for line in file)
        )


def is_mapped(number: int, name: str = "uid_map") -> bool:
    """Say if our user namespace has the user (or, `name` "gid_map", group) `number`."""
    return any(inside <= number < inside + count for inside, _, count in read_id_map(name=name))


def set_clock_offsets(monotonic: float, boottime: float) -> None:
    """Set the offsets (seconds) of the time namespace that our next children will be in. It must have no member yet."""
    lines = []
    for name, seconds in (("monotonic", monotonic), ("boottime", boottime)):
        nanoseconds = round(seconds * 1_000_000_000)
        lines.append(f"{name} {nanoseconds // 1_000_000_000} {nanoseconds % 1_000_000_000}\n")
    write_proc("/proc/self/timens_offsets", "".join(lines))
