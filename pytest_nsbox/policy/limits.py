"""The one table of limits: parser, kernel files on cgroup v1 and v2, the counter that shows a hit, the help.

The marker, ``--help``, the page docs/reference/limits.md, the doctor and the failure messages read it. The page is
what ``python -m pytest_nsbox.policy.limits`` prints.

Sources: Documentation/admin-guide/cgroup-v1/ and cgroup-v2.rst of the kernel, setrlimit(2).
"""

from __future__ import annotations

from pytest_nsbox.policy import units
from pytest_nsbox.policy.errors import BadValueError
from pytest_nsbox.policy.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from pytest_nsbox.policy.spec import Spec

    Writer = Callable[[Spec], tuple["Write", ...]]

DEFAULT_PERIOD = 100_000  # microseconds, the kernel's own default
LONGEST_PERIOD = 1_000_000
SMALLEST_QUOTA = 1_000  # below this the kernel answers EINVAL (min_cfs_quota_period)


@record
class Write:
    """One value for one file of a box's group in the hierarchy of ``controller``.

    ``fallback`` is what to do where the kernel has no such file: None means that the limit cannot be enforced here
    (an error), a tuple holds the writes to make instead, () that nothing needs to be done.
    """

    controller: str
    file: str
    value: str
    fallback: tuple[Write, ...] | None = None


@record
class Limit:
    """One row. ``hit`` is (file, key) pairs of counters that rise when the limit is met, on v1 and on v2.

    ``v1`` and ``v2`` give the writes, in order, for a spec that has this limit set.
    """

    name: str
    controller: str | None
    parse: Callable[[object], object]
    accepted: str
    example: str
    help: str
    v1: Writer | None = None
    v2: Writer | None = None
    hit: tuple[tuple[str, str], ...] = ()


def cpu_quota(spec: Spec) -> tuple[int, int]:
    """(quota, period) in microseconds for ``spec.cpu``: the period grows when the quota would be below 1 ms."""
    assert spec.cpu is not None
    period = spec.cpu_period or DEFAULT_PERIOD
    if round(spec.cpu * period) < SMALLEST_QUOTA:
        period = min(LONGEST_PERIOD, max(period, -round(-SMALLEST_QUOTA / spec.cpu)))
    return max(SMALLEST_QUOTA, round(spec.cpu * period)), period


def weight_of(shares: int) -> int:
    """cgroup v2's cpu.weight (1..10000) for v1's cpu.shares (2..262144), as container runtimes convert it."""
    return 1 + (shares - 2) * 9999 // 262142


def _cpu_v1(spec: Spec) -> tuple[Write, ...]:
    quota, period = cpu_quota(spec)
    return (Write("cpu", "cpu.cfs_period_us", str(period)), Write("cpu", "cpu.cfs_quota_us", str(quota)))


def _cpu_v2(spec: Spec) -> tuple[Write, ...]:
    quota, period = cpu_quota(spec)
    return (Write("cpu", "cpu.max", f"{quota} {period}"),)


def _mem(file: str) -> Writer:
    return lambda spec: (Write("memory", file, str(spec.mem)),)


def _swap_v1(spec: Spec) -> tuple[Write, ...]:
    # After the memory limit: memsw may not be below it, and a new group has neither.
    swap = spec.swap or 0
    # A kernel without swap accounting has no memsw; a swappiness of 0 still keeps the group out of swap.
    instead = (Write("memory", "memory.swappiness", "0", fallback=()),) if swap == 0 else None
    return (Write("memory", "memory.memsw.limit_in_bytes", str((spec.mem or 0) + swap), fallback=instead),)


def _swap_v2(spec: Spec) -> tuple[Write, ...]:
    # swap.max=0: else the kernel swaps instead of stopping at the limit. A kernel without swap has no such file.
    swap = spec.swap or 0
    return (Write("memory", "memory.swap.max", str(swap), fallback=() if swap == 0 else None),)


# Stands for the disk that the scratch lies on, which only the warden knows ("8:0").
DISK = "{disk}"
_IO_V1 = {
    "rbps": "blkio.throttle.read_bps_device",
    "wbps": "blkio.throttle.write_bps_device",
    "riops": "blkio.throttle.read_iops_device",
    "wiops": "blkio.throttle.write_iops_device",
}
_IO_ACCEPTED = "{'rbps': SIZE, 'wbps': SIZE, 'riops': COUNT, 'wiops': COUNT}"
_HUGETLB_ACCEPTED = "{PAGESIZE: SIZE} such as {'2MB': '16M'}"


def parse_io(value: object) -> tuple[tuple[str, int], ...]:
    """(rate, number per second) of ``{"rbps": "4M", "wiops": 100}``, sorted."""
    found: dict[str, int] = {}
    for name, given in _table(value):
        if name not in _IO_V1:
            raise BadValueError(f"unknown rate {name!r}")
        found[name] = units.parse_positive_size(given) if name.endswith("bps") else units.parse_count(given)
    return tuple(sorted(found.items()))


def parse_hugetlb(value: object) -> tuple[tuple[str, int], ...]:
    """(size of pages as the kernel spells it, bytes) of ``{"2M": "16M"}``, sorted."""
    found = {_page_size(units.parse_positive_size(name)): units.parse_size(given) for name, given in _table(value)}
    return tuple(sorted(found.items()))


def _page_size(size: int) -> str:
    for letter, unit in (("GB", 1 << 30), ("MB", 1 << 20), ("KB", 1 << 10)):
        if size % unit == 0:
            return f"{size // unit}{letter}"
    raise BadValueError("no size of pages", _HUGETLB_ACCEPTED)


def _table(value: object) -> list[tuple[str, object]]:
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise BadValueError("not a table")
    return list(value.items())


def _io_v1(spec: Spec) -> tuple[Write, ...]:
    return tuple(Write("blkio", _IO_V1[name], f"{DISK} {number}") for name, number in spec.io)


def _io_v2(spec: Spec) -> tuple[Write, ...]:
    rates = " ".join(f"{name}={number}" for name, number in spec.io)
    return (Write("io", "io.max", f"{DISK} {rates}"),) if rates else ()


def _hugetlb(ending: str) -> Writer:
    return lambda spec: tuple(Write("hugetlb", f"hugetlb.{size}.{ending}", str(limit)) for size, limit in spec.hugetlb)


def _pids(spec: Spec) -> tuple[Write, ...]:
    return (Write("pids", "pids.max", str(spec.pids)),)


def _cpuset(spec: Spec) -> tuple[Write, ...]:
    return (Write("cpuset", "cpuset.cpus", units.format_cpuset(spec.cpuset or ())),)


# Names of setrlimit(2) without RLIMIT_: True where the value is a size in bytes.
ULIMITS = {
    "as": True,
    "core": True,
    "cpu": False,
    "data": True,
    "fsize": True,
    "memlock": True,
    "msgqueue": True,
    "nice": False,
    "nofile": False,
    "nproc": False,
    "rss": True,
    "rtprio": False,
    "rttime": False,
    "sigpending": False,
    "stack": True,
}
_ULIMITS_ACCEPTED = "{NAME: VALUE or [SOFT, HARD]}, a value being a number, a size or 'unlimited'; names: " + ", ".join(
    ULIMITS
)


def parse_ulimits(value: object) -> tuple[tuple[str, int, int], ...]:
    """(name, soft, hard) of ``{"nofile": 256, "core": [0, "unlimited"]}``, sorted by name; -1 is unlimited."""
    if not isinstance(value, dict):
        raise BadValueError("not a table of limits", _ULIMITS_ACCEPTED)
    found = []
    for name, given in value.items():
        if name not in ULIMITS:
            raise BadValueError(f"unknown ulimit {name!r}", _ULIMITS_ACCEPTED)
        pair = given if isinstance(given, (list, tuple)) else (given, given)
        if len(pair) != 2:
            raise BadValueError(f"{name!r} has {len(pair)} values", _ULIMITS_ACCEPTED)
        soft, hard = (_ulimit(name, part) for part in pair)
        if hard != -1 and (soft == -1 or soft > hard):
            raise BadValueError(f"{name!r} has a soft limit above the hard one", _ULIMITS_ACCEPTED)
        found.append((name, soft, hard))
    return tuple(sorted(found))


def _ulimit(name: str, value: object) -> int:
    if value == "unlimited" or (value == -1 and not isinstance(value, bool)):
        return -1
    try:
        return units.parse_size(value) if ULIMITS[name] else units.parse_count(value, smallest=0)
    except BadValueError as error:
        raise BadValueError(f"{name!r} is {error.reason}", _ULIMITS_ACCEPTED) from None


def _parse_period(value: object) -> int:
    accepted = "1 ms to 1 s, such as '100ms'"
    try:
        period = round(units.parse_duration(value) * 1e6)
    except BadValueError as error:
        raise BadValueError(error.reason, accepted) from None
    if not 1_000 <= period <= LONGEST_PERIOD:
        raise BadValueError("out of range", accepted)
    return period


LIMITS: tuple[Limit, ...] = (
    Limit(
        name="cpu",
        controller="cpu",
        parse=units.parse_cpu,
        accepted=units.CPU,
        example="20%",
        help="CPU quota, of one CPU or in CPUs. A very small one is spread over a longer period, up to 1 s.",
        v1=_cpu_v1,
        v2=_cpu_v2,
        hit=(("cpu.stat", "nr_throttled"),),
    ),
    Limit(
        name="cpu_period",
        controller="cpu",
        parse=_parse_period,
        accepted="1 ms to 1 s, such as '100ms'",
        example="50ms",
        help="The period that the CPU quota is counted over, 1 ms to 1 s (100 ms without it); needs `cpu`.",
    ),
    Limit(
        name="cpu_shares",
        controller="cpu",
        parse=lambda value: units.parse_count(value, 2, 262144),
        accepted="2 to 262144",
        example="512",
        help="Weight against other groups when CPUs are scarce, 2 to 262144 (the default is 1024).",
        v1=lambda spec: (Write("cpu", "cpu.shares", str(spec.cpu_shares)),),
        v2=lambda spec: (Write("cpu", "cpu.weight", str(weight_of(spec.cpu_shares or 2))),),
    ),
    Limit(
        name="cpuset",
        controller="cpuset",
        parse=units.parse_cpuset,
        accepted=units.CPUSET,
        example="0-1,3",
        help="The CPUs that the test may run on.",
        v1=_cpuset,
        v2=_cpuset,
    ),
    Limit(
        name="mem",
        controller="memory",
        parse=units.parse_positive_size,
        accepted=units.SIZE,
        example="256M",
        help="Hard memory limit. Page cache and tmpfs files count, the cache is dropped before the limit kills.",
        v1=_mem("memory.limit_in_bytes"),
        v2=_mem("memory.max"),
        hit=(("memory.oom_control", "oom_kill"), ("memory.events", "oom_kill")),
    ),
    Limit(
        name="swap",
        controller="memory",
        parse=units.parse_size,
        accepted=units.SIZE,
        example="64M",
        help="Swap on top of `mem` (Docker's --memory-swap is the sum); 0 when only `mem` is set; needs `mem`.",
        v1=_swap_v1,
        v2=_swap_v2,
    ),
    Limit(
        name="pids",
        controller="pids",
        parse=units.parse_pids,
        accepted="a whole number from 1 to 4194304",
        example="64",
        help="Number of processes and threads of the test; the box's init is not counted.",
        v1=_pids,
        v2=_pids,
        hit=(("pids.events", "max"),),
    ),
    Limit(
        name="io",
        controller="io",
        parse=parse_io,
        accepted=_IO_ACCEPTED,
        example='{"rbps": "4M", "wiops": 100}',
        help="Bytes and operations per second on the disk that the scratch lies on. cgroup v1 slows only direct and "
        "synced I/O.",
        v1=_io_v1,
        v2=_io_v2,
    ),
    Limit(
        name="hugetlb",
        controller="hugetlb",
        parse=parse_hugetlb,
        accepted=_HUGETLB_ACCEPTED,
        example='{"2MB": "16M"}',
        help="Bytes of huge pages, by the size of a page; a process that touches more gets SIGBUS.",
        v1=_hugetlb("limit_in_bytes"),
        v2=_hugetlb("max"),
    ),
    Limit(
        name="ulimits",
        controller=None,
        parse=parse_ulimits,
        accepted=_ULIMITS_ACCEPTED,
        example='{"nofile": 256}',
        help="Resource limits of setrlimit(2) by name, without RLIMIT_ and in lower case; one value or [soft, hard].",
    ),
    Limit(
        name="disk",
        controller=None,
        parse=units.parse_positive_size,
        accepted=units.SIZE,
        example="100M",
        help="Size of the scratch layer: writing more fails with ENOSPC. It lies in memory then: keep it below `mem`.",
    ),
    Limit(
        name="timeout",
        controller=None,
        parse=units.parse_duration,
        accepted=units.DURATION,
        example="30s",
        help="Wall clock of the test, enforced from outside of it; the whole box is killed.",
    ),
)

BY_NAME = {limit.name: limit for limit in LIMITS}
_WRITERS = {
    1: tuple((limit.name, limit.v1) for limit in LIMITS if limit.v1),
    2: tuple((limit.name, limit.v2) for limit in LIMITS if limit.v2),
}


def cgroup_writes(spec: Spec, version: int) -> tuple[Write, ...]:
    """What to write, in order, into the new group of a box on cgroup ``version`` (1 or 2)."""
    found: list[Write] = []
    for name, writer in _WRITERS[version]:
        if getattr(spec, name) is not None:
            found += writer(spec)
    return tuple(found)


def with_disk(writes: tuple[Write, ...], disk: str) -> tuple[Write, ...]:
    """The same, with the number of the disk ("8:0") where it is missing."""
    return tuple(
        Write(write.controller, write.file, write.value.replace(DISK, disk), write.fallback) for write in writes
    )


def controllers_needed(spec: Spec, version: int) -> frozenset[str]:
    """Names of the controllers without which this spec's limits cannot be enforced."""
    return frozenset(write.controller for write in cgroup_writes(spec, version))


def render_page() -> str:
    """The Markdown of docs/reference/limits.md."""
    lines = [
        "# Limits",
        "",
        "<!-- Made by `python -m pytest_nsbox.policy.limits`; change the table there, not this page. -->",
        "",
        "Each is a key of the `sandbox` marker, of `--sandbox-set` and of the ini `sandbox_defaults`.",
        "A limit that this machine cannot enforce is an error that says why; `--sandbox-doctor` shows them all.",
        "",
        "| Key | Example | Accepted | What it does |",
        "|---|---|---|---|",
    ]
    lines += [_cells(f"`{row.name}`", f"`{row.example}`", row.accepted, row.help) for row in LIMITS]
    lines += ["", "## Where the kernel is told", ""]
    lines += ["What the examples above write into the group of a box, and the counter that rises at the limit.", ""]
    lines += ["| Key | cgroup v1 | cgroup v2 | Counter |", "|---|---|---|---|"]
    for row in LIMITS:
        if row.v1 and row.v2:
            counters = ", ".join(f"`{key}` of `{file}`" for file, key in row.hit) or "none"
            lines.append(_cells(f"`{row.name}`", _files(row.v1), _files(row.v2), counters))
    lines += [
        "",
        "`ulimits` are set by setrlimit(2) in the test's process, `disk` is the size of the scratch filesystem, and",
        "`timeout` is kept by pytest's own process. `cpu_period` is written together with `cpu`. `{disk}` is the",
        "number of the whole disk (or device-mapper device) that holds `TMPDIR`.",
        "",
    ]
    return "\n".join(lines)


def _files(writer: Writer) -> str:
    from pytest_nsbox.policy.spec import Spec  # for this page only; the warden reads this table at its start

    tables = {"io": {"rbps": "4M", "wiops": 100}, "hugetlb": {"2MB": "16M"}, "ulimits": {}}
    parsed: dict[str, Any] = {row.name: row.parse(tables.get(row.name, row.example)) for row in LIMITS}
    return ", ".join(f"`{write.file}` = `{write.value}`" for write in writer(Spec(**parsed)))


def _cells(*texts: str) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"


if __name__ == "__main__":
    print(render_page(), end="")  # noqa: T201  # the page is this command's result
