from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_nsbox.policy.keys import KEYS
from pytest_nsbox.policy.limits import LIMITS, cgroup_writes, controllers_needed, cpu_quota, weight_of, with_disk
from pytest_nsbox.policy.spec import Layer, Spec

ROOT = Path(__file__).parents[2]


def spec(**values) -> Spec:
    return Spec.build([Layer(values, "")])


def written(version: int, **values) -> list[str]:
    writes = with_disk(cgroup_writes(spec(**values), version), "8:16")
    return [f"{write.controller}/{write.file}={write.value}" for write in writes]


@pytest.mark.parametrize(
    ("values", "v1", "v2"),
    [
        ({}, [], []),
        ({"cpu": "20%"}, ["cpu/cpu.cfs_period_us=100000", "cpu/cpu.cfs_quota_us=20000"], ["cpu/cpu.max=20000 100000"]),
        (
            {"cpu": 2, "cpu_period": "50ms"},
            ["cpu/cpu.cfs_period_us=50000", "cpu/cpu.cfs_quota_us=100000"],
            ["cpu/cpu.max=100000 50000"],
        ),
        ({"cpu_shares": 1024}, ["cpu/cpu.shares=1024"], ["cpu/cpu.weight=39"]),
        ({"cpuset": "1,0"}, ["cpuset/cpuset.cpus=0-1"], ["cpuset/cpuset.cpus=0-1"]),
        (
            {"mem": "256M"},
            ["memory/memory.limit_in_bytes=268435456", "memory/memory.memsw.limit_in_bytes=268435456"],
            ["memory/memory.max=268435456", "memory/memory.swap.max=0"],
        ),
        (
            {"mem": "256M", "swap": "64M"},
            ["memory/memory.limit_in_bytes=268435456", "memory/memory.memsw.limit_in_bytes=335544320"],
            ["memory/memory.max=268435456", "memory/memory.swap.max=67108864"],
        ),
        ({"pids": 64}, ["pids/pids.max=64"], ["pids/pids.max=64"]),
        (
            {"io": {"wiops": 100, "rbps": "4M"}},
            ["blkio/blkio.throttle.read_bps_device=8:16 4194304", "blkio/blkio.throttle.write_iops_device=8:16 100"],
            ["io/io.max=8:16 rbps=4194304 wiops=100"],
        ),
        (
            {"hugetlb": {"2MiB": "16M", "1G": 0}},
            ["hugetlb/hugetlb.1GB.limit_in_bytes=0", "hugetlb/hugetlb.2MB.limit_in_bytes=16777216"],
            ["hugetlb/hugetlb.1GB.max=0", "hugetlb/hugetlb.2MB.max=16777216"],
        ),
        ({"ulimits": {"nofile": 5}, "disk": "1M", "timeout": 3}, [], []),
    ],
)
def test_a_spec_is_written_into_the_kernels_files_in_order(values, v1, v2):
    assert written(1, **values) == v1
    assert written(2, **values) == v2


def test_swap_that_was_asked_for_must_be_enforced_and_no_swap_falls_back():
    for version in (1, 2):
        asked = cgroup_writes(spec(mem="1M", swap="1M"), version)[-1]
        assert asked.fallback is None
        implied = cgroup_writes(spec(mem="1M"), version)[-1]
        assert implied.fallback is not None
    (instead,) = cgroup_writes(spec(mem="1M"), 1)[-1].fallback or ()
    assert (instead.file, instead.value, instead.fallback) == ("memory.swappiness", "0", ())


@pytest.mark.parametrize(
    ("cpu", "period", "quota"),
    [
        ("20%", None, (20_000, 100_000)),
        ("1%", None, (1_000, 100_000)),
        ("0.5%", None, (1_000, 200_000)),
        ("0.1%", None, (1_000, 1_000_000)),
        ("20%", "1ms", (1_000, 5_000)),
        (64, "1s", (64_000_000, 1_000_000)),
    ],
)
def test_the_period_grows_where_the_quota_would_be_too_small_for_the_kernel(cpu, period, quota):
    assert cpu_quota(spec(cpu=cpu, **({"cpu_period": period} if period else {}))) == quota


@given(st.floats(0.001, 512), st.none() | st.integers(1000, 1_000_000))
def test_any_quota_is_one_that_the_kernel_takes_and_keeps_the_share(cpu, period):
    quota, used = cpu_quota(Spec(cpu=cpu, cpu_period=period))
    assert quota >= 1000
    assert 1000 <= used <= 1_000_000
    assert used >= (period or 100_000)
    assert quota / used == pytest.approx(cpu, rel=0.001)


@given(st.integers(2, 262144))
def test_any_shares_become_a_weight_of_v2(shares):
    assert 1 <= weight_of(shares) <= 10000


def test_the_ends_of_the_range_of_shares_are_those_of_the_weight():
    assert (weight_of(2), weight_of(262144)) == (1, 10000)


def test_the_controllers_that_a_spec_needs_are_told():
    assert controllers_needed(spec(cpu=1, mem="1M", timeout=1), 1) == {"cpu", "memory"}
    assert controllers_needed(spec(), 2) == frozenset()


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: limit.name)
def test_every_row_has_its_help_and_an_example_that_its_parser_takes(limit):
    assert limit.help.endswith(".")
    assert limit.accepted
    assert KEYS[limit.name].parse == limit.parse
    limit.parse(ast.literal_eval(limit.example) if limit.example.startswith("{") else limit.example)


def test_the_page_in_the_docs_is_what_the_table_prints():
    run = subprocess.run(
        [sys.executable, "-m", "pytest_nsbox.policy.limits"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    page = ROOT / "docs" / "reference" / "limits.md"
    assert run.stderr == ""
    assert page.read_text(encoding="utf-8") == run.stdout, (
        f"run: python -m pytest_nsbox.policy.limits > {page.relative_to(ROOT)}"
    )


@pytest.mark.parametrize(
    ("values", "quota"),
    [
        ({"cpu": 0.001}, (1_000, 1_000_000)),
        ({"cpu": 0.005, "cpu_period": "1ms"}, (1_000, 200_000)),
        ({"cpu": 1, "cpu_period": "1s"}, (1_000_000, 1_000_000)),
        ({"cpu": 1, "cpu_period": "1ms"}, (1_000, 1_000)),
        ({"cpu": 64}, (6_400_000, 100_000)),
    ],
)
def test_quota_and_period_at_their_edges(values, quota):
    assert cpu_quota(spec(**values)) == quota
