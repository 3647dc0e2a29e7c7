"""The CPUs of a box: how many, which, and what /proc/cpuinfo says of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_nsbox.policy.cpus import choose_cpus, cpu_list, cpu_mask, cpuinfo_text
from pytest_nsbox.policy.spec import Spec
from tests.policy.proc_texts import CPUINFO_ARM, CPUINFO_X86

EIGHT = tuple(range(8))


@pytest.mark.parametrize(
    ("cpu", "count"), [(0.001, 1), (0.2, 1), (1, 1), (1.0000000001, 1), (1.5, 2), (2, 2), (7.01, 8), (8, 8)]
)
def test_a_quota_is_rounded_up_to_cpus(cpu: float, count: int):
    assert len(choose_cpus(Spec(cpu=cpu), EIGHT, 0)) == count


def test_boxes_go_round():
    assert [choose_cpus(Spec(cpu=2), EIGHT, start) for start in (0, 2, 7, 9)] == [(0, 1), (2, 3), (0, 7), (1, 2)]


def test_a_cpuset_says_which_and_a_quota_how_many():
    assert choose_cpus(Spec(cpuset=(1, 3, 5)), EIGHT, 4) == (1, 3, 5)
    assert choose_cpus(Spec(cpuset=(1, 3, 5), cpu=1.5), EIGHT, 4) == (3, 5)
    assert choose_cpus(Spec(), EIGHT, 4) == EIGHT


@given(st.floats(0.001, 64), st.sets(st.integers(0, 63), min_size=1), st.integers(0, 10**6))
def test_only_allowed_cpus_are_chosen(cpu: float, allowed: set[int], start: int):
    chosen = choose_cpus(Spec(cpu=cpu), tuple(sorted(allowed)), start)
    assert set(chosen) <= allowed
    assert chosen == tuple(sorted(set(chosen)))
    assert 1 <= len(chosen) <= cpu + 1


def test_lists_are_the_kernels():
    assert cpu_list((0, 1, 3)) == "0-1,3\n"
    assert cpu_list(()) == "\n"


@pytest.mark.parametrize(
    ("host", "seen", "mask"),
    [
        ("3", (1,), "2"),
        ("ff", (0, 3), "09"),
        ("f,ffffffff", (1, 32), "1,00000002"),
        ("00000000,00000003", (0,), "00000000,00000001"),
    ],
)
def test_masks_are_as_wide_as_the_hosts(host: str, seen: tuple[int, ...], mask: str):
    assert cpu_mask(f"{host}\n", seen) == f"{mask}\n"


@given(st.sets(st.integers(0, 7), min_size=1))
def test_cpuinfo_keeps_whole_blocks_and_counts_anew(cpus: set[int]):
    text = cpuinfo_text(CPUINFO_X86, tuple(sorted(cpus)))
    assert text.endswith(":\n\n")
    blocks = text.removesuffix("\n\n").split("\n\n")
    assert [block.splitlines()[0] for block in blocks] == [f"processor\t: {cpu}" for cpu in sorted(cpus)]
    hosts = CPUINFO_X86.split("\n\n")[0].splitlines()
    for cpu, block in zip(sorted(cpus), blocks, strict=True):
        assert [line.partition(":")[0] for line in block.splitlines()] == [line.partition(":")[0] for line in hosts]
        beside = [other for other in cpus if other // 4 == cpu // 4]
        assert f"siblings\t: {len(beside)}\n" in block
        assert f"cpu cores\t: {len({other % 4 // 2 for other in beside})}\n" in block


def test_all_cpus_leave_cpuinfo_as_it_is():
    assert cpuinfo_text(CPUINFO_X86, EIGHT) == CPUINFO_X86
    assert cpuinfo_text(CPUINFO_ARM, (0, 1, 2, 3)) == CPUINFO_ARM


def test_what_is_no_cpu_stays_in_cpuinfo():
    assert cpuinfo_text(CPUINFO_ARM, (2,)) == (
        "processor\t: 2\nBogoMIPS\t: 108.00\nCPU implementer\t: 0x41\nCPU part\t: 0xd08\n\n"
        "Hardware\t: BCM2835\nRevision\t: c03111\n"
    )
