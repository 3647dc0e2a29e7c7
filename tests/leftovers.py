"""What a test run can leave on the machine, listed so that two listings can be compared.

Several runs may share a machine, so every listing is narrowed to what this run owns: processes that
descend from it or carry its tag in their environment, mounts and directories below its own temporary
directory, control groups below its own cgroup parent.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

TAG = "NSBOX_TEST_RUN"
PARENT = "PYTEST_NSBOX_CGROUP_PARENT"
OWN_PARENT = re.compile(r"/tests-\d+$")
# Seconds: a warden removes things after its client is gone, on a loaded machine not at once.
GRACE = float(os.environ.get("NSBOX_TEST_GRACE", "20"))

# Started lazily by the standard library, one per process, and meant to live as long as that.
STANDARD_LIBRARY = (b"multiprocessing.resource_tracker", b"multiprocessing.forkserver")


class Leftovers:
    """The listings of one test process. `claim` must have been called before."""

    def __init__(self, tag: str, tmp: Path, base_temp: Path) -> None:
        self.tag = f"{TAG}={tag}\0".encode()
        self.name = tag
        self.tmp = tmp
        self.mount_marks = (str(tmp), str(base_temp))
        self.cgroups = tuple(own_cgroup_directories())
        self.foreign: set[int] = set()
        self.reported: set[str] = set()

    def snapshot(self) -> dict[str, str]:
        """Everything that this run owns now: an identity (stable while the thing lives) -> a description."""
        found = dict(self.processes())
        found.update(self.mounts())
        found.update(self.control_groups())
        found.update(self.files())
        found.update((f"interface {name}", f"network interface {name}") for name in interfaces())
        found.update(descriptors())
        return found

    def new_since(self, before: dict[str, str], grace: float = GRACE) -> dict[str, str]:
        """What is there now and was not `before`, waiting up to `grace` seconds for it to go."""
        deadline = time.monotonic() + grace
        while True:
            now = self.snapshot()
            left = {key: text for key, text in now.items() if key not in before and key not in self.reported}
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(0.02)

    def remove(self, left: dict[str, str]) -> None:
        """Takes away what `new_since` returned, so that one leak is reported once and does not stay."""
        self.reported.update(left)
        for key in left:
            kind, _, rest = key.partition(" ")
            if kind == "process":
                kill_and_reap(int(rest.split(" ")[0]))
        for key in sorted(left, reverse=True):  # deepest directory first
            kind, _, rest = key.partition(" ")
            with suppress(OSError):
                if kind == "cgroup":
                    os.rmdir(rest)
                elif kind == "file":
                    path = Path(rest)
                    if path.is_dir() and not path.is_symlink():
                        shutil.rmtree(path, ignore_errors=True)
                    else:
                        path.unlink()

    def processes(self) -> Iterator[tuple[str, str]]:
        pids = {int(name) for name in os.listdir("/proc") if name.isdigit()}
        self.foreign &= pids
        ours = {os.getpid()}
        # Ascending: a parent is usually seen before its child; the tag catches the rest.
        for pid in sorted(pids - self.foreign - ours):
            try:
                stat = Path(f"/proc/{pid}/stat").read_bytes()
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            name, fields = parse_stat(stat)
            try:
                environment = Path(f"/proc/{pid}/environ").read_bytes()
            except OSError:
                environment = None
            if self.tag not in (environment or b"") and int(fields[1]) not in ours:
                # One in the middle of an execve has no environment yet, and may be ours all the same.
                if environment != b"" or int(fields[6]) & PF_KTHREAD:
                    self.foreign.add(pid)
                continue
            ours.add(pid)
            if any(word in command for word in STANDARD_LIBRARY):
                continue
            what = "zombie" if fields[0] == "Z" else "process"
            shown = command.replace(b"\0", b" ").decode(errors="replace").strip()[:120]
            yield f"process {pid} {fields[19]}", f"{what} {pid} ({name}) {shown}".rstrip()

    def mounts(self) -> Iterator[tuple[str, str]]:
        for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if any(mark in line for mark in self.mount_marks):
                fields = line.split(" ")
                yield f"mount {fields[0]} {fields[4]}", f"mount {fields[4]}"

    def control_groups(self) -> Iterator[tuple[str, str]]:
        for top, pattern in self.cgroups:
            for directory, children, _ in os.walk(top):
                if pattern and directory == top:
                    children[:] = [name for name in children if name.startswith(pattern)]
                    continue
                yield f"cgroup {directory}", f"control group {directory}"

    def files(self) -> Iterator[tuple[str, str]]:
        for place, pattern in ((str(self.tmp), ""), ("/dev/shm", self.name)):
            with suppress(FileNotFoundError):
                for name in os.listdir(place):
                    if pattern in name:
                        yield f"file {place}/{name}", f"{place}/{name}"


def claim() -> tuple[str, Path]:
    """Gives this process a tag, a temporary directory and a cgroup parent of its own, in os.environ.

    Returns tag and directory. Two runs on one machine would otherwise see, and sweep, each other's leftovers.
    """
    base_temp_root = os.environ.get("PYTEST_DEBUG_TEMPROOT") or tempfile.gettempdir()
    # pytest's own base temp stays where people look for it, and keeps its retention.
    os.environ["PYTEST_DEBUG_TEMPROOT"] = base_temp_root
    tmp = Path(tempfile.mkdtemp(prefix="nsbtests-", dir=base_temp_root))
    tmp.chmod(0o1777)  # tests run programs as an ordinary user too
    tag = tmp.name
    os.environ[TAG] = tag
    # pytest keeps its cache there instead of in the rootdir: inner runs would all share one.
    os.environ.pop("TOX_ENV_DIR", None)
    os.environ["TMPDIR"] = str(tmp)
    tempfile.tempdir = None
    parent = os.environ.get(PARENT) or default_parent()
    if parent:
        os.environ[PARENT] = f"{OWN_PARENT.sub('', parent).rstrip('/')}/tests-{os.getpid()}"
    return tag, tmp


def default_parent() -> str:
    """The group that this process is in, "/" where that differs from hierarchy to hierarchy; "" to name none.

    None on v2 below the root: there the process must first leave its group, and that is the product's to do.
    """
    paths = {hierarchy.path for hierarchy in own_hierarchies()}
    if any(hierarchy.v2 and hierarchy.path != "/" for hierarchy in own_hierarchies()):
        return ""
    return paths.pop() if len(paths) == 1 else "/"


def kill_and_reap(pid: int) -> None:
    with suppress(OSError):
        os.kill(pid, signal.SIGKILL)
    with suppress(ChildProcessError):
        # Bounded: a frozen process of cgroup v1 does not die before it is thawed.
        for _ in range(100):
            if os.waitpid(pid, os.WNOHANG)[0]:
                return
            time.sleep(0.01)


PF_KTHREAD = 0x00200000  # in the flags of proc_pid_stat(5)


def parse_stat(stat: bytes) -> tuple[str, list[str]]:
    """Name and the fields from `state` on, of proc_pid_stat(5); the name may hold spaces and parentheses."""
    head, _, tail = stat.rpartition(b")")
    return head.partition(b"(")[2].decode(errors="replace"), tail.decode().split()


def cgroup_mounts() -> Iterator[tuple[str, str, frozenset[str]]]:
    """(mount point, path of its root in the hierarchy, v1 options or {""} for v2) of every cgroup mount."""
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ")[:3]
        if kind in {"cgroup", "cgroup2"}:
            fields = left.split(" ")
            yield fields[4], fields[3], frozenset(options.split(",")) if kind == "cgroup" else frozenset({""})


class Hierarchy(NamedTuple):
    point: str
    path: str  # of this process' group, relative to the mount
    v2: bool  # and the limits are there, not in v1 hierarchies beside it


def own_hierarchies() -> Iterator[Hierarchy]:
    """Where this process is, in every mounted hierarchy."""
    paths = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()]
    for point, root, options in cgroup_mounts():
        v2 = "" in options and "memory" in Path(point, "cgroup.controllers").read_text(encoding="utf-8").split()
        for _, names, path in paths:
            if set(names.split(",")) <= options:
                yield Hierarchy(point, os.path.normpath(f"/{os.path.relpath(path, root)}"), v2)


def own_cgroup_directories() -> Iterator[tuple[str, str]]:
    """(directory, prefix of the children that are ours or "" for all of it), one per hierarchy."""
    parent = os.environ.get(PARENT)
    for point, path, _ in own_hierarchies():
        yield (f"{point}/{parent.strip('/')}", "") if parent else (os.path.normpath(f"{point}{path}"), "nsbox-")


def interfaces() -> list[str]:
    return [name for name in os.listdir("/sys/class/net") if name.startswith("nsb")]


def descriptors() -> Iterator[tuple[str, str]]:
    """Open descriptors of this process that hold something of a box: pidfds, namespaces, cgroup files."""
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue
        if target == "anon_inode:[pidfd]" or ":[" in target.removeprefix("anon_inode") or "/cgroup/" in target:
            if target.startswith(("socket:", "pipe:")):
                continue
            yield f"descriptor {number} {target}", f"descriptor {number} of the test process: {target}"
