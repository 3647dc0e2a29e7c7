"""What a box uses at this moment, from the texts of its cgroups' files: the numbers behind the /proc that it sees.

v1 files count what nested groups use under names that begin with ``total_``; v2 files always do. Sources:
cgroup-v1/{memory,cpuacct,blkio-controller} and cgroup-v2.rst in the kernel's admin guide.
"""

from __future__ import annotations

from pytest_nsbox.policy.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TypeAlias

    Disks: TypeAlias = Mapping["tuple[int, int]", "DiskUse"]

# Files by version: name of what they tell -> file. Where the kernel has no such file its numbers are 0.
MEMORY_FILES = {
    1: ("memory.usage_in_bytes", "memory.stat", ""),
    2: ("memory.current", "memory.stat", "memory.swap.current"),
}
CPU_FILE = {1: "cpuacct.usage_all", 2: "cpu.stat"}
DISK_FILES = {
    1: ("blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_serviced_recursive"),
    2: ("io.stat",),
}
TASKS_FILE = "pids.current"


@record
class MemoryUse:
    """Bytes. ``used`` is all that counts against the limit; ``file`` holds ``shmem`` (tmpfs) too, as in the kernel's
    Cached; ``faults`` are counted since the group was made; ``limit`` is the smallest of this group's and those above
    it, where the kernel tells (v1).
    """

    used: int = 0
    anon: int = 0
    file: int = 0
    shmem: int = 0
    mapped: int = 0
    dirty: int = 0
    writeback: int = 0
    inactive_anon: int = 0
    active_anon: int = 0
    inactive_file: int = 0
    active_file: int = 0
    unevictable: int = 0
    anon_huge: int = 0
    shmem_huge: int = 0
    file_huge: int = 0
    slab_reclaimable: int = 0
    slab_unreclaimable: int = 0
    kernel_stack: int = 0
    page_tables: int = 0
    percpu: int = 0
    swap: int = 0
    swap_cached: int = 0
    faults: int = 0
    major_faults: int = 0
    limit: int | None = None


_MEMORY_KEYS = {
    1: {
        "anon": "total_rss",
        "file": "total_cache",
        "shmem": "total_shmem",
        "mapped": "total_mapped_file",
        "dirty": "total_dirty",
        "writeback": "total_writeback",
        "inactive_anon": "total_inactive_anon",
        "active_anon": "total_active_anon",
        "inactive_file": "total_inactive_file",
        "active_file": "total_active_file",
        "unevictable": "total_unevictable",
        "anon_huge": "total_rss_huge",
        "swap": "total_swap",
        "swap_cached": "total_swapcached",
        "faults": "total_pgfault",
        "major_faults": "total_pgmajfault",
        "limit": "hierarchical_memory_limit",
    },
    2: {
        "anon": "anon",
        "file": "file",
        "shmem": "shmem",
        "mapped": "file_mapped",
        "dirty": "file_dirty",
        "writeback": "file_writeback",
        "inactive_anon": "inactive_anon",
        "active_anon": "active_anon",
        "inactive_file": "inactive_file",
        "active_file": "active_file",
        "unevictable": "unevictable",
        "anon_huge": "anon_thp",
        "shmem_huge": "shmem_thp",
        "file_huge": "file_thp",
        "slab_reclaimable": "slab_reclaimable",
        "slab_unreclaimable": "slab_unreclaimable",
        "kernel_stack": "kernel_stack",
        "page_tables": "pagetables",
        "percpu": "percpu",
        "swap_cached": "swapcached",
        "faults": "pgfault",
        "major_faults": "pgmajfault",
    },
}


def memory_use(version: int, used: str, stat: str, swap: str = "") -> MemoryUse:
    """The memory of a box, from the texts of MEMORY_FILES; what a text lacks is 0."""
    table = _table(stat)
    found = {name: int(table[key]) for name, key in _MEMORY_KEYS[version].items() if key in table}
    if swap.strip():
        found["swap"] = int(swap)
    return MemoryUse(used=int(used or 0), **found)


def _table(text: str) -> dict[str, str]:
    """Of a text of lines `name number`."""
    return dict(line.split(" ", 1) for line in text.splitlines() if " " in line)


@record
class CpuUse:
    """Nanoseconds in user and system mode; ``per_cpu`` the same by number of the CPU, where the kernel tells (v1)."""

    user: int = 0
    system: int = 0
    per_cpu: tuple[tuple[int, int], ...] = ()


def cpu_use(version: int, text: str) -> CpuUse:
    """The CPU time of a box, from the text of CPU_FILE."""
    if version == 1:
        rows = [line.split() for line in text.splitlines()[1:]]
        per_cpu = tuple((int(user), int(system)) for _, user, system in rows)
        return CpuUse(sum(user for user, _ in per_cpu), sum(system for _, system in per_cpu), per_cpu)
    table = _table(text)
    return CpuUse(int(table.get("user_usec", 0)) * 1000, int(table.get("system_usec", 0)) * 1000)


@record
class DiskUse:
    """Requests and bytes of one block device: read, written, discarded."""

    reads: int = 0
    read_bytes: int = 0
    writes: int = 0
    written_bytes: int = 0
    discards: int = 0
    discarded_bytes: int = 0


def disk_use(version: int, *texts: str) -> Disks:
    """What a box did to block devices by (major, minor), from the texts of DISK_FILES."""
    rows: dict[tuple[int, int], dict[str, int]] = {}
    for text, columns in zip(texts, _DISK_COLUMNS[version], strict=False):
        for line in text.splitlines():
            device, _, rest = line.partition(" ")
            major, colon, minor = device.partition(":")
            if not colon:
                continue
            row = rows.setdefault((int(major), int(minor)), {})
            # v1 has a line for each kind of request, v2 one with key=value.
            pairs = [rest.split(" ")] if version == 1 else [part.split("=") for part in rest.split(" ")]
            for key, value in (pair for pair in pairs if len(pair) == 2):
                if key in columns:
                    row[columns[key]] = int(value)
    return {device: DiskUse(**row) for device, row in rows.items()}


_DISK_COLUMNS: dict[int, tuple[dict[str, str], ...]] = {
    1: (
        {"Read": "read_bytes", "Write": "written_bytes", "Discard": "discarded_bytes"},
        {"Read": "reads", "Write": "writes", "Discard": "discards"},
    ),
    2: (
        {
            "rbytes": "read_bytes",
            "wbytes": "written_bytes",
            "dbytes": "discarded_bytes",
            "rios": "reads",
            "wios": "writes",
            "dios": "discards",
        },
    ),
}


@record
class Tasks:
    """Threads of a box: in all, runnable, waiting for a disk; and the last pid that was given out in it."""

    total: int = 1
    running: int = 1
    blocked: int = 0
    last_pid: int = 1


def read_task(status: str) -> tuple[str, int]:
    """(state letter, innermost pid) of a text of /proc/PID/status; ("", 0) for an empty one. Source: proc(5)."""
    state, pid = "", 0
    for line in status.splitlines():
        if line.startswith("State:"):
            state = line.split()[1]
        elif line.startswith("NSpid:"):
            pid = int(line.split()[-1])
            break
    return state, pid
