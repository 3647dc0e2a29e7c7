"""What the job that this process belongs to may use, from control groups as files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pytest_nsbox.kernel import job
from pytest_nsbox.kernel.cgroup import Mount

CPUS = len(os.sched_getaffinity(0))
MEMORY = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_without_a_limit_it_is_the_machine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(job, "find_mounts", list)
    assert job.memory_and_cpus() == (MEMORY, CPUS)


@pytest.mark.parametrize(
    ("version", "inner", "outer"),
    [
        (
            1,
            {"memory.limit_in_bytes": "9223372036854771712", "cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"},
            {"memory.limit_in_bytes": "4194304", "cpu.cfs_quota_us": "25000", "cpu.cfs_period_us": "100000"},
        ),
        (2, {"memory.max": "max", "cpu.max": "max 100000"}, {"memory.max": "4194304", "cpu.max": "25000 100000"}),
    ],
)
def test_the_tightest_group_on_the_way_up_counts(
    version: int, inner: dict[str, str], outer: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    group = tmp_path / "job" / "step"
    group.mkdir(parents=True)
    for directory, files in ((group, inner), (group.parent, outer)):
        for name, text in files.items():
            (directory / name).write_text(f"{text}\n")
    controllers = frozenset(("cpu", "memory")) if version == 1 else frozenset[str]()
    mount = Mount(version, str(tmp_path), "/", "/job/step", controllers)
    monkeypatch.setattr(job, "find_mounts", lambda: [mount])
    assert job.memory_and_cpus() == (4 << 20, 0.25)
