"""Attempts on control groups: to raise the box's own limits, to leave them, and to reach other people's groups."""

from __future__ import annotations

import errno
import mmap
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tests.escapes.attempt import USER, HeldError, Place, attempt, in_a_process, mounted
from tests.escapes.system import NEWCGROUP, call, open_to_write, unshare, write_file

OWN = "/sys/fs/cgroup"
TOO_MUCH = 96 << 20  # bytes; boxes get 64 MiB
UNSEEN = "the host's groups are not to be seen"


def limit_file(at: Place) -> tuple[str, str]:
    """Name of the memory limit's file, and what stands for no limit."""
    return ("memory.limit_in_bytes", "-1") if at.cgroup_version == 1 else ("memory.max", "max")


def own_group(at: Place) -> str:
    """The box's memory group; outside, one that the test made."""
    if not at.inside:
        return at.groups["memory"]
    return f"{OWN}/memory" if at.cgroup_version == 1 else OWN


@contextmanager
def fresh(hierarchy: str, at: Place) -> Iterator[str]:
    """A new mount of a hierarchy, cgroup2 if there is no other."""
    if hierarchy == "unified" or at.cgroup_version == 2:
        with mounted("none", "cgroup2") as top:
            yield top
    else:
        with mounted("none", "cgroup", hierarchy) as top:
            yield top


def find(top: str, path: str) -> str:
    """A group of the host's in a fresh mount, by its name."""
    name = os.path.basename(path)
    for directory, children, _ in os.walk(top):
        if name in children:
            return f"{directory}/{name}"
    raise HeldError(UNSEEN)


@attempt("EACCES")
def own_limit(at: Place) -> None:
    file, no_limit = limit_file(at)
    write_file(f"{own_group(at)}/{file}", no_limit)


@attempt("EACCES")
def own_limit_in_a_fresh_mount(at: Place) -> None:
    file, no_limit = limit_file(at)
    with fresh("memory", at) as top:
        write_file(f"{top if at.inside else find(top, at.groups['memory'])}/{file}", no_limit)


@attempt("EPERM")
def own_limit_given_away(at: Place) -> None:
    file, _ = limit_file(at)
    os.chown(f"{own_group(at)}/{file}", os.getuid(), os.getgid())


@attempt("killed at the limit of the box")
def more_memory_in_a_group_of_its_own_making(at: Place) -> None:
    file, no_limit = limit_file(at)
    group = f"{own_group(at)}/made"
    os.mkdir(group)
    try:
        if at.cgroup_version == 1:
            write_file(f"{group}/{file}", no_limit)
        ended = in_a_process(lambda: use_memory(group))
    finally:
        os.rmdir(group)
    if ended == f"ended by status {int(signal.SIGKILL)}":
        raise HeldError("killed at the limit of the box")
    assert ended == "used", ended


def use_memory(group: str) -> str:
    write_file(f"{group}/cgroup.procs", "0")
    with mmap.mmap(-1, TOO_MUCH) as memory:
        for page in range(0, TOO_MUCH, mmap.PAGESIZE):
            memory[page] = 1
    return "used"


@attempt("still in its own groups")
def parent_group(at: Place) -> None:
    """Move to any group that can be found."""
    if not at.inside:
        below = f"{at.groups['memory']}/below"
        os.mkdir(below)
        write_file(f"{below}/cgroup.procs", "0")
        unshare(NEWCGROUP)
        write_file(f"{at.groups['memory']}/cgroup.procs", "0")
        os.rmdir(below)
    else:
        move_anywhere(OWN)
        with open("/proc/self/cgroup", encoding="ascii") as file:
            hierarchies = [line.split(":")[1] for line in file]
        for hierarchy in hierarchies:
            with (
                suppress(OSError),
                fresh(hierarchy, at) if hierarchy else mounted("none", "cgroup2") as top,
            ):
                move_anywhere(top)
    with open("/proc/self/cgroup", encoding="ascii") as file:
        if "/.." not in file.read():
            raise HeldError("still in its own groups")


def move_anywhere(top: str) -> None:
    for directory, _, _ in os.walk(top):
        for parent in ("", "../"):
            for file in ("tasks", "cgroup.procs"):
                with suppress(OSError):
                    write_file(f"{directory}/{parent}{file}", "0")


@attempt("EACCES or ENOENT", absent=("ENOSYS",))
def program_that_the_kernel_starts_as_root(at: Place) -> None:
    """A hierarchy's release agent is started by the kernel, outside of all boxes."""
    if at.cgroup_version != 1:
        raise OSError(errno.ENOSYS, "not in v2")
    with fresh("freezer", at) as top:
        open_to_write(f"{top}/release_agent")


@attempt("EACCES", absent=("ENOSYS",))
def devices_that_the_group_may_use(at: Place) -> None:
    if at.cgroup_version != 1:
        raise OSError(errno.ENOSYS, "not in v2")
    with fresh("devices", at) as top:
        open_to_write(f"{top}/devices.allow")


@attempt(f"EACCES or {UNSEEN}", absent=("ENOSYS",))
def freeze_of_a_host_process(at: Place) -> None:
    freeze(at, "root")


@attempt(UNSEEN, absent=("ENOSYS",))
def freeze_of_a_host_users_process(at: Place) -> None:
    freeze(at, "user")


def freeze(at: Place, whose: str) -> None:
    if at.cgroup_version != 1 or "freezer" not in at.groups:
        raise OSError(errno.ENOSYS, "no freezer")
    with fresh("freezer", at) as top, files_of(whose, f"{find(top, at.groups['freezer'])}/{whose}"):
        write_file("freezer.state", "FROZEN")
        write_file("freezer.state", "THAWED")


@attempt(f"EACCES or {UNSEEN}", absent=("ENOSYS",))
def kill_of_a_host_group(at: Place) -> None:
    kill(at, "root")


@attempt(UNSEEN, absent=("ENOSYS",))
def kill_of_a_host_users_group(at: Place) -> None:
    kill(at, "user")


def kill(at: Place, whose: str) -> None:
    if "unified" not in at.groups:
        raise OSError(errno.ENOSYS, "no cgroup2 with cgroup.kill")
    with fresh("unified", at) as top, files_of(whose, f"{find(top, at.groups['unified'])}/{whose}"):
        # To be let in is enough.
        open_to_write("cgroup.kill")


@contextmanager
def files_of(whose: str, group: str) -> Iterator[None]:
    """Be in a group's directory, and access files as its owner, with the rights to mount and unmount kept."""
    os.chdir(group)
    if whose == "user":
        call("setfsgid", USER)
        call("setfsuid", USER)
    try:
        yield
    finally:
        call("setfsuid", os.getuid())
        call("setfsgid", os.getgid())
        os.chdir("/")
