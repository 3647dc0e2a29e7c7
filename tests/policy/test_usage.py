from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_nsbox.policy.spec import Spec
from pytest_nsbox.policy.usage import NAMES, as_properties, complete, from_properties, hits, parse, since

V1 = {
    "cpuacct": {
        "cpuacct.usage": "1500000000\n",
        "cpuacct.usage_user": "1000000000\n",
        "cpuacct.usage_sys": "500000000\n",
    },
    "cpu": {"cpu.stat": "nr_periods 10\nnr_throttled 4\nthrottled_time 250000000\nnr_bursts 0\nburst_time 0\n"},
    "memory": {
        "memory.max_usage_in_bytes": "268435456\n",
        "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
    },
    "pids": {"pids.peak": "7\n", "pids.events": "max 3\n"},
    "blkio": {
        "blkio.throttle.io_service_bytes": "8:0 Read 4096\n8:0 Write 512\n8:0 Total 4608\n8:16 Read 1\nTotal 4609\n"
    },
}
V2 = {
    "cpu.stat": "usage_usec 1500000\nuser_usec 1000000\nsystem_usec 500000\nnr_periods 10\nnr_throttled 4\n"
    "throttled_usec 250000\nnr_bursts 0\n",
    "memory.peak": "268435456\n",
    "memory.events": "low 0\nhigh 0\nmax 5\noom 2\noom_kill 2\noom_group_kill 0\n",
    "pids.peak": "7\n",
    "pids.events": "max 3\n",
    "io.stat": "8:0 rbytes=4096 wbytes=512 rios=1 wios=1 dbytes=0 dios=0\n8:16 rbytes=1 wbytes=0 rios=1 wios=0\n",
}
BOTH = {
    "cpu_s": 1.5,
    "cpu_user_s": 1.0,
    "cpu_system_s": 0.5,
    "cpu_throttled_s": 0.25,
    "cpu_nr_throttled": 4,
    "memory_peak_bytes": 268435456,
    "oom_kills": 2,
    "pids_peak": 7,
    "io_read_bytes": 4097,
    "io_write_bytes": 512,
}


@pytest.mark.parametrize("raw", [V1, V2], ids=["v1", "v2"])
def test_counters_of_either_version_become_the_same_names(raw):
    assert parse(raw) == BOTH
    assert list(parse(raw)) == [name for name in NAMES if name in BOTH]


def test_a_counter_that_the_kernel_lacks_is_left_out():
    assert parse({}) == {}
    assert parse({"cpu.stat": "usage_usec 5\n"}) == {"cpu_s": 5e-06}
    assert (
        parse({"memory.events": "low 0\n", "pids.peak": "max\n", "io.stat": "8:0 rbytes=x\n", "memory.peak": ""}) == {}
    )


def test_kills_in_nested_groups_add_up():
    assert parse({"memory.oom_control": "oom_kill 1\nunder_oom 0\noom_kill 2\n"}) == {"oom_kills": 3}


@pytest.mark.parametrize("raw", [V1, V2], ids=["v1", "v2"])
def test_the_counters_of_the_table_tell_which_limits_were_met(raw):
    assert hits(raw) == {"cpu": 4, "mem": 2, "pids": 3}
    assert hits({}) == {}


def test_usage_is_completed_with_what_no_counter_tells():
    whole = complete({"cpu_s": 1.0}, Spec(mem=5), wall_s=2.0, files_changed=3)
    assert whole == {"wall_s": 2.0, "cpu_s": 1.0, "memory_limit_bytes": 5, "files_changed": 3}
    assert list(whole) == ["wall_s", "cpu_s", "memory_limit_bytes", "files_changed"]
    assert complete({"cpu_s": 1.0}, Spec()) == {"cpu_s": 1.0}


def test_properties_bear_the_prefix_and_read_back_among_others():
    properties = as_properties({"oom_kills": 0, "wall_s": 0.5})
    assert properties == [("sandbox.wall_s", 0.5), ("sandbox.oom_kills", 0)]
    assert from_properties([("mine", "x"), ("sandbox.unknown", 1), *properties]) == {"wall_s": 0.5, "oom_kills": 0}
    assert from_properties([]) == {}


FILES = [*V2, *(file for files in V1.values() for file in files)]


@given(st.dictionaries(st.sampled_from(FILES), st.text()))
def test_any_text_in_a_counter_file_is_read_or_passed_over(raw):
    assert set(parse(raw)) <= set(NAMES)
    hits(raw)


def test_what_was_used_since_a_reading_is_the_difference_but_of_a_peak():
    before = {"cpu_s": 1.0, "oom_kills": 1, "memory_peak_bytes": 500, "pids_peak": 7}
    now = {"cpu_s": 1.5, "oom_kills": 1, "memory_peak_bytes": 300, "pids_peak": 7, "io_read_bytes": 9}
    assert since(before, now) == {
        "cpu_s": 0.5,
        "oom_kills": 0,
        "memory_peak_bytes": 300,
        "pids_peak": 7,
        "io_read_bytes": 9,
    }
    assert since({}, now) == now
    assert since({"cpu_s": 2.0}, {"cpu_s": 1.0}) == {"cpu_s": 0}
