"""The text of /proc files as a box with ``proc="limits"`` sees them: the host's keys, order and widths, with the box's
numbers.

What the kernel counts for the whole machine only stays the host's: interrupts and context switches, as many as came
since the box began; vmalloc, the direct map, huge pages. Formats: proc(5), and of the kernel's sources
fs/proc/{meminfo,stat,uptime,loadavg}.c, mm/swapfile.c, block/genhd.c.
"""

from __future__ import annotations

from pytest_nsbox.policy.proc_use import CpuUse, DiskUse, MemoryUse, Tasks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pytest_nsbox.policy.proc_use import Disks

HZ = 100  # USER_HZ, what every architecture that Python runs on shows times in
_TICK = 1_000_000_000 // HZ
_SECTOR = 512
LOAD_EVERY = 5.0  # seconds between two samples of the load, LOAD_FREQ


def _literal(text: str) -> str:
    return text.replace("%", "%%")


class Meminfo:
    """/proc/meminfo of a box that may have ``mem`` bytes of memory, and ``swap`` on top of it."""

    def __init__(self, host: str, mem: int, swap: int = 0) -> None:
        has = {key: value for key, value, _ in (_meminfo_line(line) for line in host.splitlines())}
        self.total = min(mem, has.get("MemTotal", 0) << 10 or mem)
        self.swap_total = min(swap, has.get("SwapTotal", 0) << 10)
        # The part of memory that may be promised: vm.overcommit_ratio, in per cent, which the host's own numbers tell.
        promised = has.get("CommitLimit", 0) - has.get("SwapTotal", 0)
        self._overcommit = round(100 * promised / has["MemTotal"]) if has.get("MemTotal") else 50
        known = self._values(MemoryUse())
        lines = []
        for line in host.splitlines():
            key, _, unit = _meminfo_line(line)
            if key not in known or unit is None:
                lines.append(_literal(line))
                continue
            # "%-16s%8lu kB": a long key or number takes more.
            lines.append(_literal(f"{key + ':':<16}") + f"%({key})8d" + unit)
        self._template = "\n".join(lines) + "\n"

    def render(self, use: MemoryUse) -> str:
        """The file's text."""
        return self._template % self._values(use)

    def free(self, use: MemoryUse) -> int:
        """Bytes that nobody uses, not even the cache."""
        return max(0, self.total - use.used)

    def swap_free(self, use: MemoryUse) -> int:
        """Bytes of swap that are left."""
        return max(0, self.swap_total - use.swap)

    def _values(self, use: MemoryUse) -> dict[str, int]:
        free = self.free(use)
        # The kernel counts what can be had without swapping: free pages, file pages in use or not, reclaimable slab.
        available = min(self.total, free + use.inactive_file + use.active_file + use.slab_reclaimable)
        file = max(0, use.file - use.swap_cached)
        values = {
            "MemTotal": self.total,
            "MemFree": free,
            "MemAvailable": available,
            "Buffers": 0,  # a cgroup counts the cache of block devices with that of files
            "Cached": file,
            "SwapCached": use.swap_cached,
            "Active": use.active_anon + use.active_file,
            "Inactive": use.inactive_anon + use.inactive_file,
            "Active(anon)": use.active_anon,
            "Inactive(anon)": use.inactive_anon,
            "Active(file)": use.active_file,
            "Inactive(file)": use.inactive_file,
            "Unevictable": use.unevictable,
            "Mlocked": use.unevictable,
            "HighTotal": 0,
            "HighFree": 0,
            "LowTotal": self.total,
            "LowFree": free,
            "SwapTotal": self.swap_total,
            "SwapFree": self.swap_free(use),
            "Zswap": 0,
            "Zswapped": 0,
            "Dirty": use.dirty,
            "Writeback": use.writeback,
            "AnonPages": use.anon,
            "Mapped": use.mapped,
            "Shmem": use.shmem,
            "KReclaimable": use.slab_reclaimable,
            "Slab": use.slab_reclaimable + use.slab_unreclaimable,
            "SReclaimable": use.slab_reclaimable,
            "SUnreclaim": use.slab_unreclaimable,
            "KernelStack": use.kernel_stack,
            "PageTables": use.page_tables,
            "SecPageTables": 0,
            "CommitLimit": self.total * self._overcommit // 100 + self.swap_total,
            "Committed_AS": use.anon + use.shmem + use.swap,
            "Percpu": use.percpu,
            "AnonHugePages": use.anon_huge,
            "ShmemHugePages": use.shmem_huge,
            "FileHugePages": use.file_huge,
        }
        return {key: value >> 10 for key, value in values.items()}


def _meminfo_line(line: str) -> tuple[str, int, str | None]:
    """Key, number and what follows it; None for what follows if the line is not of the kernel's form."""
    key, colon, rest = line.partition(":")
    number, space, unit = rest.strip().partition(" ")
    if not colon or not number.isdigit():
        return key, 0, None
    return key, int(number), space + unit


def meminfo_bytes(text: str) -> dict[str, int]:
    """{key: bytes} of a text of /proc/meminfo; plain counts as they are."""
    return {
        key: value << 10 if unit == " kB" else value
        for key, value, unit in (_meminfo_line(line) for line in text.splitlines())
        if unit is not None
    }


class Stat:
    """/proc/stat of a box on ``cpus`` (numbers) that began at ``btime`` (seconds of the calendar)."""

    def __init__(self, host: str, cpus: tuple[int, ...], btime: int) -> None:
        self._cpus = cpus
        self._btime = btime
        columns = next((len(line.split()) - 1 for line in host.splitlines() if line.startswith("cpu ")), 10)
        # After user, nice, system, idle: iowait irq softirq steal guest guest_nice.
        self._zeros = " 0" * (columns - 4)
        self._idle = [0] * len(cpus)
        self._began = _counters(host)
        self._rest: list[tuple[str, str]] = []
        # What follows the CPUs, and the tasks that it speaks of; None when the machine's counters are others.
        self._tail: tuple[Tasks, str] | None = None
        self.set_host(host)

    def set_host(self, host: str) -> None:
        """Take the machine's own counters (interrupts, context switches) from the host's text, as they were first."""
        self._rest = [(key, _since(self._began.get(key, []), now)) for key, now in _counters(host).items()]
        self._tail = None

    @property
    def idle(self) -> float:
        """Seconds that the box's CPUs were idle, all together, as of the last ``render``."""
        return sum(self._idle) / HZ

    def render(self, uptime: float, use: CpuUse, tasks: Tasks) -> str:
        """The file's text, ``uptime`` seconds after the box began."""
        busy = self._share(use)
        elapsed = int(uptime * HZ)
        # Idle time never runs backwards, though clock and counters are not read at one moment.
        self._idle = [
            max(before, elapsed - user - system) for before, (user, system) in zip(self._idle, busy, strict=True)
        ]
        totals = (sum(user for user, _ in busy), sum(system for _, system in busy))
        lines = [self._row("cpu ", totals, sum(self._idle))]
        lines += [
            self._row(f"cpu{cpu}", used, idle) for cpu, used, idle in zip(self._cpus, busy, self._idle, strict=True)
        ]
        if self._tail is None or self._tail[0] is not tasks:
            self._tail = tasks, self._render_rest(tasks)
        return "".join(lines) + self._tail[1]

    def _render_rest(self, tasks: Tasks) -> str:
        own = {
            "btime": self._btime,
            "processes": tasks.last_pid,
            "procs_running": max(1, tasks.running),
            "procs_blocked": tasks.blocked,
        }
        return "".join([f"{key} {own.get(key, counted)}\n" for key, counted in self._rest])

    def _row(self, name: str, used: tuple[int, int], idle: int) -> str:
        return f"{name} {used[0]} 0 {used[1]} {idle}{self._zeros}\n"

    def _share(self, use: CpuUse) -> list[tuple[int, int]]:
        """Ticks in user and system mode by CPU. What was used elsewhere, or nobody knows where, is shared out."""
        known = [use.per_cpu[cpu] if cpu < len(use.per_cpu) else (0, 0) for cpu in self._cpus]
        count = len(self._cpus)
        user = max(0, use.user - sum(each for each, _ in known)) // count
        system = max(0, use.system - sum(each for _, each in known)) // count
        return [((here + user) // _TICK, (kernel + system) // _TICK) for here, kernel in known]


def _counters(host: str) -> dict[str, list[str]]:
    """What the lines of /proc/stat that are no CPU's count."""
    rows = (line.split(" ") for line in host.splitlines())
    return {row[0]: row[1:] for row in rows if len(row) > 1 and not row[0].startswith("cpu")}


def _since(began: list[str], now: list[str]) -> str:
    # Interrupts may get more columns while the machine runs. Most are as they were.
    began = began + ["0"] * (len(now) - len(began))
    return " ".join(["0" if was == to else _difference(was, to) for was, to in zip(began, now, strict=False)])


def _difference(was: str, to: str) -> str:
    return str(max(0, int(to) - int(was))) if was.isdigit() and to.isdigit() else to


def uptime_text(uptime: float, idle: float) -> str:
    """/proc/uptime: seconds since the box began, and the sum of the seconds that its CPUs were idle."""
    return f"{int(uptime)}.{int(uptime * 100) % 100:02d} {int(idle)}.{int(idle * 100) % 100:02d}\n"


_FSHIFT = 11
_FIXED = 1 << _FSHIFT
_EXPONENTS = (1884, 2014, 2037)  # e**(-5/60), e**(-5/300), e**(-5/900)


class Load:
    """Load averages over 1, 5 and 15 minutes, in the kernel's fixed-point numbers. Source: kernel/sched/loadavg.c."""

    def __init__(self) -> None:
        self._average = [0, 0, 0]

    def sample(self, active: int) -> None:
        """Take in how many tasks run or wait for a disk; to be called every LOAD_EVERY seconds."""
        fixed = active << _FSHIFT
        for index, exponent in enumerate(_EXPONENTS):
            old = self._average[index]
            new = old * exponent + fixed * (_FIXED - exponent)
            self._average[index] = (new + (_FIXED - 1 if fixed >= old else 0)) >> _FSHIFT

    def render(self, tasks: Tasks) -> str:
        """The text of /proc/loadavg."""
        averages = []
        for value in self._average:
            rounded = value + _FIXED // 200
            averages.append(f"{rounded >> _FSHIFT}.{(rounded & (_FIXED - 1)) * 100 >> _FSHIFT:02d}")
        return f"{' '.join(averages)} {max(1, tasks.running)}/{tasks.total} {tasks.last_pid}\n"

    def shifted(self) -> tuple[int, int, int]:
        """The averages as sysinfo(2) gives them: times 65536."""
        one, five, fifteen = (value << 16 - _FSHIFT for value in self._average)
        return one, five, fifteen


def swaps_text(host: str, total: int, used: int) -> str:
    """/proc/swaps of a box with ``total`` bytes of swap: one area, or the heading alone."""
    heading = host.partition("\n")[0] + "\n"
    if not total:
        return heading
    # seq_printf(swap, "%*s%s\t%lu\t%s%lu\t%s%d\n"): the name fills 40 columns.
    size, taken = total >> 10, used >> 10
    gap, next_gap = ("" if number >= 10_000_000 else "\t" for number in (size, taken))
    return f"{heading}{'none':<40}virtual\t\t{size}\t{gap}{taken}\t{next_gap}-1\n"


def diskstats_text(host: str, disks: Disks) -> str:
    """/proc/diskstats: the host's devices, with what the box did to each."""
    lines = []
    for line in host.splitlines():
        fields = line.split()
        if len(fields) < 14:
            lines.append(line)
            continue
        use = disks.get((int(fields[0]), int(fields[1])), DiskUse())
        # reads merged sectors ms, writes merged sectors ms, in flight, ms, weighted ms, discards …, flushes …
        values = [use.reads, 0, use.read_bytes // _SECTOR, 0, use.writes, 0, use.written_bytes // _SECTOR, 0, 0, 0, 0]
        values += [use.discards, 0, use.discarded_bytes // _SECTOR, 0, 0, 0]
        head = line[: line.index(fields[2], line.index(fields[1]) + len(fields[1])) + len(fields[2])]
        more = [0] * max(0, len(fields) - 3 - len(values))
        lines.append(" ".join([head, *map(str, [*values, *more][: len(fields) - 3])]))
    return "\n".join(lines) + ("\n" if lines else "")
