"""What a box used: from the texts of cgroup counters to one flat dict, and to report properties.

A counter that the kernel lacks is left out, never guessed. Sources: cgroup-v1/{cpuacct,memory,pids,blkio-controller}
and cgroup-v2.rst in the kernel's admin guide.
"""

from __future__ import annotations

from pytest_nsbox.policy.limits import LIMITS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TypeAlias

    from pytest_nsbox.policy.spec import Spec

    Raw: TypeAlias = Mapping[str, str | Mapping[str, str]]

Usage = dict[str, "int | float"]

PREFIX = "sandbox."
NAMES = (
    "wall_s",
    "cpu_s",
    "cpu_user_s",
    "cpu_system_s",
    "cpu_throttled_s",
    "cpu_nr_throttled",
    "memory_peak_bytes",
    "memory_limit_bytes",
    "oom_kills",
    "pids_peak",
    "io_read_bytes",
    "io_write_bytes",
    "files_changed",
)
_SUMS = frozenset(name for name in NAMES if not name.endswith(("_peak", "_peak_bytes", "_limit_bytes")))


def parse(raw: Raw) -> Usage:
    """Usage of counter files by name (``{"cpuacct.usage": "12345\\n", ...}``), possibly grouped by controller.

    v1 and v2 files are told apart by their names and keys. A file whose text is not understood counts as lacking.
    Texts of several groups joined together are added up where the counter is a sum (``oom_kill`` lines).
    """
    files = _flat(raw)
    usage: Usage = {}
    for file, reader in _READERS.items():
        if file in files:
            try:
                usage.update(reader(files[file]))
            except ValueError:
                continue
    return {name: usage[name] for name in NAMES if name in usage}


def since(before: Mapping[str, float], now: Mapping[str, float]) -> Usage:
    """What was used between two readings of one box's counters; of a peak, the later reading."""
    return {
        name: max(0, value - before[name]) if name in _SUMS and name in before else value for name, value in now.items()
    }


def hits(raw: Raw) -> dict[str, int]:
    """How often each limit of the table was met, by the limit's name; limits without such a counter are left out."""
    files = _flat(raw)
    found: dict[str, int] = {}
    for limit in LIMITS:
        for file, key in limit.hit:
            if key in (table := _table(files.get(file, ""))):
                found[limit.name] = found.get(limit.name, 0) + table[key]
    return found


def complete(
    usage: Mapping[str, float], spec: Spec, *, wall_s: float | None = None, files_changed: int | None = None
) -> Usage:
    """``usage`` with what no counter tells, in the order of NAMES."""
    known: Usage = dict(usage)
    if spec.mem is not None:
        known["memory_limit_bytes"] = spec.mem
    if wall_s is not None:
        known["wall_s"] = wall_s
    if files_changed is not None:
        known["files_changed"] = files_changed
    return {name: known[name] for name in NAMES if name in known}


def as_properties(usage: Mapping[str, float]) -> list[tuple[str, object]]:
    """``user_properties`` of a report: ``[("sandbox.wall_s", 0.21), ...]`` in the order of NAMES."""
    return [(PREFIX + name, usage[name]) for name in NAMES if name in usage]


def from_properties(properties: list[tuple[str, object]]) -> Usage:
    """The way back from ``as_properties``, past properties of others; {} for a test without a box."""
    found = {str(name).removeprefix(PREFIX): value for name, value in properties if str(name).startswith(PREFIX)}
    return {name: value for name in NAMES if isinstance(value := found.get(name), (int, float))}


def _flat(raw: Raw) -> dict[str, str]:
    files: dict[str, str] = {}
    for name, value in raw.items():
        if isinstance(value, str):
            files[name] = value
        else:
            files.update(value)
    return files


def _table(text: str) -> dict[str, int]:
    """``key number`` lines; a key that comes again is added up, lines of another form are passed over."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        key, _, number = line.partition(" ")
        if number.isdigit():
            found[key] = found.get(key, 0) + int(number)
    return found


def _cpu_stat(text: str) -> Usage:
    table = _table(text)
    # v2 counts in microseconds, v1's throttled_time in nanoseconds.
    scaled = (
        ("usage_usec", "cpu_s", 1e6),
        ("user_usec", "cpu_user_s", 1e6),
        ("system_usec", "cpu_system_s", 1e6),
        ("throttled_usec", "cpu_throttled_s", 1e6),
        ("throttled_time", "cpu_throttled_s", 1e9),
    )
    usage: Usage = {name: table[key] / scale for key, name, scale in scaled if key in table}
    if "nr_throttled" in table:
        usage["cpu_nr_throttled"] = table["nr_throttled"]
    return usage


def _number(name: str, scale: float = 0) -> Callable[[str], Usage]:
    return lambda text: {name: int(text) / scale if scale else int(text)}


def _oom(text: str) -> Usage:
    table = _table(text)
    return {"oom_kills": table["oom_kill"]} if "oom_kill" in table else {}


def _io_stat(text: str) -> Usage:
    """v2: ``8:0 rbytes=4096 wbytes=0 rios=1 ...``, one line per device."""
    read = written = 0
    for line in text.splitlines():
        pairs = dict(part.split("=", 1) for part in line.split()[1:] if "=" in part)
        read += int(pairs.get("rbytes", 0))
        written += int(pairs.get("wbytes", 0))
    return {"io_read_bytes": read, "io_write_bytes": written}


def _blkio(text: str) -> Usage:
    """v1: ``8:0 Read 4096`` lines per device and a last ``Total 4096``."""
    sums = {"Read": 0, "Write": 0}
    for line in text.splitlines():
        parts = line.split()
        if len(parts) == 3 and parts[1] in sums:
            sums[parts[1]] += int(parts[2])
    return {"io_read_bytes": sums["Read"], "io_write_bytes": sums["Write"]}


# Later entries win: the recursive blkio file over the plain one.
_READERS: dict[str, Callable[[str], Usage]] = {
    "cpuacct.usage": _number("cpu_s", 1e9),
    "cpuacct.usage_user": _number("cpu_user_s", 1e9),
    "cpuacct.usage_sys": _number("cpu_system_s", 1e9),
    "cpu.stat": _cpu_stat,
    "memory.max_usage_in_bytes": _number("memory_peak_bytes"),
    "memory.peak": _number("memory_peak_bytes"),
    "memory.oom_control": _oom,
    "memory.events": _oom,
    "pids.peak": _number("pids_peak"),
    "blkio.throttle.io_service_bytes": _blkio,
    "blkio.throttle.io_service_bytes_recursive": _blkio,
    "io.stat": _io_stat,
}
