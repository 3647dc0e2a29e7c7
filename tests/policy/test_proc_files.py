"""What boxes see as /proc: the kernel's own format, field by field, with the box's numbers."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_nsbox.policy import proc_files as files
from pytest_nsbox.policy.proc_use import CpuUse, DiskUse, MemoryUse, Tasks, cpu_use, disk_use, memory_use, read_task
from pytest_nsbox.policy.proc_vmstat import Vmstat
from pytest_nsbox.policy.record import fields
from tests.policy.proc_texts import DISKSTATS, MEMINFO, MEMORY_V1, MEMORY_V2, STAT, SWAPS, VMSTAT

MIB = 1 << 20
SIZES = st.integers(0, 1 << 44)
USES = st.builds(MemoryUse, **{name: SIZES for name in fields(MemoryUse) if name != "limit"})


def meminfo(text: str) -> dict[str, int]:
    return {line.partition(":")[0]: int(line.partition(":")[2].split()[0]) for line in text.splitlines()}


@given(USES, st.integers(MIB, 1 << 44), SIZES)
def test_meminfo_has_the_hosts_keys_in_their_order_and_columns(use: MemoryUse, mem: int, swap: int) -> None:
    text = files.Meminfo(MEMINFO, mem, swap).render(use)
    ours, hosts = text.splitlines(), MEMINFO.splitlines()
    assert text.endswith("\n")
    assert [line.partition(":")[0] for line in ours] == [line.partition(":")[0] for line in hosts]
    for line, host in zip(ours, hosts, strict=True):
        assert line.endswith(" kB") == host.endswith(" kB")
        match = re.fullmatch(r"([^:]+: *)(\d+)( kB)?", line)
        assert match
        # The kernel's "%-16s%8lu": a number of up to eight digits ends where the host's does.
        if len(match[2]) <= 8 and not host.startswith("VmallocTotal"):
            assert len(line) == len(re.sub(r"\d+( kB)?$", "", host).rstrip()) + len(host) - len(
                re.sub(r"\d+( kB)?$", "", host).rstrip()
            )


@given(USES, st.integers(MIB, 1 << 44), SIZES)
def test_meminfo_never_tells_of_more_than_there_is(use: MemoryUse, mem: int, swap: int) -> None:
    values = meminfo(files.Meminfo(MEMINFO, mem, swap).render(use))
    assert values["MemTotal"] == min(mem >> 10, 24684092)
    assert 0 <= values["MemFree"] <= values["MemAvailable"] <= values["MemTotal"]
    assert 0 <= values["SwapFree"] <= values["SwapTotal"] <= 1048572


def test_meminfo_of_what_a_v1_group_counts() -> None:
    use = memory_use(1, *MEMORY_V1.values())
    assert use.limit == 256 * MIB
    values = meminfo(files.Meminfo(MEMINFO, 256 * MIB, 64 * MIB).render(use))
    expected = {
        "MemTotal": 262144,
        "MemFree": 262144 - 102400,
        "MemAvailable": 262144 - 102400 + 30720 + 9216,
        "Buffers": 0,
        "Cached": 40960,
        "Active": 11264,
        "Inactive(anon)": 49152,
        "SwapTotal": 65536,
        "SwapFree": 65524,
        "AnonPages": 51200,
        "Shmem": 1024,
        "AnonHugePages": 2048,
        # Half of the memory, as vm.overcommit_ratio is on that host.
        "CommitLimit": 131072 + 65536,
        "Committed_AS": 51200 + 1024 + 12,
        "HugePages_Total": 4,
        "VmallocTotal": 34359738367,
    }
    assert {key: values[key] for key in expected} == expected


def test_meminfo_of_what_a_v2_group_counts() -> None:
    use = memory_use(2, *MEMORY_V2.values())
    values = meminfo(files.Meminfo(MEMINFO, 256 * MIB).render(use))
    expected = {
        "MemTotal": 262144,
        "MemAvailable": 262144 - 102400 + 30720 + 9216 + 1024,
        "SReclaimable": 1024,
        "Slab": 1536,
        "KernelStack": 64,
        "PageTables": 128,
        "Percpu": 3,
        "SwapTotal": 0,
        "SwapFree": 0,
    }
    assert {key: values[key] for key in expected} == expected


def test_meminfo_keeps_lines_that_it_does_not_know() -> None:
    host = "MemTotal:        4096 kB\nWonder%s:   many things\nNew:   3 kB\n"
    assert (
        files.Meminfo(host, 1 << 20).render(MemoryUse())
        == "MemTotal:           1024 kB\nWonder%s:   many things\nNew:   3 kB\n"
    )


CPU_USES = st.builds(
    lambda rows: CpuUse(sum(u for u, _ in rows), sum(s for _, s in rows), tuple(rows)),
    st.lists(st.tuples(st.integers(0, 10**13), st.integers(0, 10**13)), min_size=4, max_size=4),
) | st.builds(CpuUse, st.integers(0, 10**13), st.integers(0, 10**13))


@given(CPU_USES, st.sets(st.integers(0, 3), min_size=1), st.floats(0, 10**6))
def test_stat_has_the_hosts_keys_and_columns(use: CpuUse, cpus: set[int], uptime: float) -> None:
    stat = files.Stat(STAT, tuple(sorted(cpus)), 1_800_000_000)
    lines = stat.render(uptime, use, Tasks(5, 2, 1, 17)).splitlines()
    keys = ["cpu", *(f"cpu{cpu}" for cpu in sorted(cpus)), "intr", "ctxt", "btime", "processes", "procs_running"]
    assert [line.split()[0] for line in lines] == [*keys, "procs_blocked", "softirq"]
    rows = [line for line in lines if line.startswith("cpu")]
    assert all(len(row.split()) == 11 for row in rows)
    assert rows[0].startswith("cpu  ")
    totals = [sum(int(row.split()[column]) for row in rows[1:]) for column in range(1, 11)]
    assert rows[0].split()[1:] == [str(total) for total in totals]
    # Nothing is lost but what is less than a tick of each CPU.
    assert abs(totals[0] + totals[2] - (use.user + use.system) / 1e7) <= 2 * len(cpus) + 1
    assert {"btime 1800000000", "processes 17", "procs_running 2", "procs_blocked 1"} < set(lines)


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 10**10)), min_size=2, max_size=20))
def test_times_of_stat_never_run_backwards(steps: list[tuple[float, int]]) -> None:
    stat = files.Stat(STAT, (1,), 0)
    uptime, used, rows = 0.0, 0, []
    for seconds, busy in steps:
        uptime += seconds
        used += busy
        rows.append([int(part) for part in stat.render(uptime, CpuUse(used, 0), Tasks()).split("\n")[0].split()[1:]])
    assert all(a <= b for before, after in pairwise(rows) for a, b in zip(before, after, strict=True))
    assert stat.idle == rows[-1][3] / 100


def test_interrupts_and_switches_count_from_the_begin_of_the_box() -> None:
    stat = files.Stat(STAT, (0,), 0)
    assert {"intr 0 0 0 0 0 0", "ctxt 0"} < set(stat.render(1.0, CpuUse(), Tasks()).splitlines())
    stat.set_host("intr 46965390 0 0 25 0 1562452 7\nctxt 316611600\nnew 5\nodd word\n")
    rest = stat.render(2.0, CpuUse(), Tasks()).splitlines()[2:]
    # A counter that ran backwards is as at the begin; a column or a line that is new began at 0.
    assert rest == ["intr 5 0 0 0 0 5 7", "ctxt 0", "new 5", "odd word"]


@pytest.mark.parametrize(("version", "texts"), [(1, MEMORY_V1), (2, MEMORY_V2)])
def test_vmstat_holds_what_the_box_has_and_counts_since_it_began(version: int, texts: dict[str, str]) -> None:
    use = memory_use(version, *texts.values())
    vmstat = Vmstat(VMSTAT, 4096)
    vmstat.set_host(VMSTAT.replace("900000000", "900000007").replace("5600100", "5600099"))
    text = vmstat.render(use, {(8, 0): DiskUse(3, 8192, 2, 5000)}, free=1 << 20, swapped=False)
    assert [line.split()[0] for line in text.splitlines()] == [line.split()[0] for line in VMSTAT.splitlines()]
    assert {line.split()[0]: int(line.split()[1]) for line in text.splitlines()} == {
        "nr_free_pages": 256,
        "nr_zone_write_pending": 2,
        "nr_anon_pages": 12800,
        "nr_file_pages": 10240,
        "nr_dirtied": 0,
        "nr_kernel_stack": use.kernel_stack >> 10,
        "nr_page_table_pages": use.page_tables >> 12,
        "numa_hit": 7,
        "pgpgin": 8,
        "pgpgout": 4,
        "pswpin": 0,
        "pswpout": 0,
        "pgfault": 400,
        "pgmajfault": 4,
        "oom_kill": 0,
        "nr_unstable": 0,
    }


def test_vmstat_of_a_box_without_a_memory_limit_keeps_the_machines_pages() -> None:
    text = Vmstat(VMSTAT, 4096).render(MemoryUse(anon=4096), {}, free=None, swapped=True)
    assert {"nr_free_pages 5371060", "nr_anon_pages 31062", "pgpgin 0", "numa_hit 0"} < set(text.splitlines())
    assert Vmstat("", 4096).render(MemoryUse(), {}, free=None, swapped=True) == ""


def test_what_ran_on_other_cpus_is_shared_out() -> None:
    use = CpuUse(30_000_000, 60_000_000, ((10_000_000, 0), (20_000_000, 60_000_000)))
    row = files.Stat(STAT, (0,), 0).render(1.0, use, Tasks()).splitlines()[1]
    assert row == "cpu0 3 0 6 91 0 0 0 0 0 0"


def test_cpu_use_of_both_versions() -> None:
    assert cpu_use(1, "cpu user system\n0 5 6\n1 7 8\n") == CpuUse(12, 14, ((5, 6), (7, 8)))
    assert cpu_use(2, "usage_usec 30\nuser_usec 10\nsystem_usec 20\n") == CpuUse(10_000, 20_000)
    assert cpu_use(1, "") == cpu_use(2, "") == CpuUse()


@given(st.floats(0, 10**9), st.floats(0, 10**9))
def test_uptime_has_two_numbers_with_two_digits(uptime: float, idle: float) -> None:
    text = files.uptime_text(uptime, idle)
    assert re.fullmatch(r"\d+\.\d\d \d+\.\d\d\n", text)
    assert float(text.split()[0]) <= uptime + 1e-6 * uptime < float(text.split()[0]) + 0.02 + 2e-6 * uptime


def test_load_follows_the_kernels_arithmetic() -> None:
    load = files.Load()
    assert load.render(Tasks(3, 1, 0, 12)) == "0.00 0.00 0.00 1/3 12\n"
    for _ in range(12):
        load.sample(2)
    # 2 * (1 - e**-1) after a minute with two tasks.
    assert load.render(Tasks(3, 2, 0, 12)) == "1.27 0.37 0.13 2/3 12\n"
    assert [round(value / 65536, 2) for value in load.shifted()] == [1.27, 0.37, 0.13]
    for _ in range(1000):
        load.sample(0)
    assert load.render(Tasks(2, 0, 0, 12)).startswith("0.00 ")


@given(st.integers(1, 1 << 40), st.integers(0, 1 << 40))
def test_swaps_are_one_area_in_the_kernels_columns(total: int, used: int) -> None:
    heading, row = files.swaps_text(SWAPS, total, used).splitlines()
    assert heading == SWAPS.splitlines()[0]
    assert row.split() == ["none", "virtual", str(total >> 10), str(used >> 10), "-1"]
    assert row.index("virtual") == SWAPS.splitlines()[1].index("partition")
    if total >> 10 < 10_000_000 and used >> 10 < 10_000_000:
        columns = [match.start() for match in re.finditer(r"\S+", row.expandtabs())]
        assert columns == [match.start() for match in re.finditer(r"\S+", SWAPS.splitlines()[1].expandtabs())]


def test_a_box_without_swap_has_the_heading_alone() -> None:
    assert files.swaps_text(SWAPS, 0, 0) == SWAPS.splitlines()[0] + "\n"


def test_diskstats_are_the_hosts_devices_with_the_boxs_numbers() -> None:
    disks = {(254, 0): DiskUse(3, 8192, 2, 1024, 1, 512), (8, 0): DiskUse(9, 9, 9, 9)}
    lines = files.diskstats_text(DISKSTATS, disks).splitlines()
    assert lines == [
        "   7       0 loop0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0",
        " 254       0 vda 3 0 16 0 2 0 2 0 0 0 0 1 0 1 0 0 0",
        " 259       1 nvme0n1 0 0 0 0 0 0 0 0 0 0 0",
    ]
    assert files.diskstats_text("", {}) == ""


@pytest.mark.parametrize(
    ("version", "texts"),
    [
        (
            1,
            ("254:0 Read 8192\n254:0 Write 1024\n254:0 Sync 1\nTotal 9217\n", "254:0 Read 3\n254:0 Write 2\nTotal 5\n"),
        ),
        (2, ("254:0 rbytes=8192 wbytes=1024 rios=3 wios=2 dbytes=0 dios=0\n7:0 \n",)),
    ],
)
def test_disk_use_of_both_versions(version: int, texts: tuple[str, ...]) -> None:
    assert disk_use(version, *texts)[254, 0] == DiskUse(3, 8192, 2, 1024)


def test_a_task_is_read_with_its_innermost_pid() -> None:
    assert read_task("Name:\tx\nState:\tR (running)\nPid:\t400\nNSpid:\t400\t12\t3\nThreads:\t1\n") == ("R", 3)
    assert read_task("") == ("", 0)


def test_texts_that_are_missing_count_nothing() -> None:
    empty: Any = memory_use(2, "", "", "")
    assert empty == MemoryUse()
    assert disk_use(1, "", "") == {}
