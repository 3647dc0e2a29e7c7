"""What this process may use in all: the memory and the CPUs of the machine, or of the control groups that it lives in.

Sources: cgroup-v1/memory.rst, sched-bwc.rst and cgroup-v2.rst of the kernel's documentation, proc(5).
"""

from __future__ import annotations

import os

from pytest_nsbox.kernel.cgroup import find_mounts
from pytest_nsbox.policy.errors import KernelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_nsbox.kernel.cgroup import Mount

_UNLIMITED = 1 << 62  # v1 writes the largest number of pages there is


def memory_and_cpus() -> tuple[int, float]:
    """Bytes of memory, and CPUs as a quota counts them; the tightest limit on the way to the root counts."""
    memory, cpus = [_machines_memory()], [float(len(os.sched_getaffinity(0)))]
    for mount in _mounts():
        for group in _way_up(mount):
            # A file that a hierarchy does not have says nothing.
            if mount.version == 2:
                memory += _numbers(group, "memory.max")
                cpus += _quota(_numbers(group, "cpu.max"))
            if "memory" in mount.controllers:
                memory += _numbers(group, "memory.limit_in_bytes")
            if "cpu" in mount.controllers:
                cpus += _quota(_numbers(group, "cpu.cfs_quota_us") + _numbers(group, "cpu.cfs_period_us"))
    return min(size for size in memory if size < _UNLIMITED), min(cpus)


def _mounts() -> list[Mount]:
    try:
        return find_mounts()
    except KernelError:
        return []


def _way_up(mount: Mount) -> Iterator[str]:
    path = mount.own_path()
    while path is not None and path.startswith(mount.point):
        yield path
        path = os.path.dirname(path) if path != mount.point else None


def _numbers(group: str, file: str) -> list[int]:
    """The numbers in a file; none where it says "max" or -1, or cannot be read."""
    try:
        with open(f"{group}/{file}", encoding="ascii") as text:
            words = text.read().split()
    except OSError:
        return []
    return [int(word) for word in words] if all(word.isdigit() for word in words) else []


def _quota(found: list[int]) -> list[float]:
    return [found[0] / found[1]] if len(found) == 2 and found[1] else []


def _machines_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
