"""The summary table: what a user reads of it, at which width."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_nsbox.policy.table import COLUMNS, heaviest, render, short_bytes, short_seconds, shorten, text_width, totals

MIB = 2**20
LIGHT = {
    "wall_s": 0.012,
    "cpu_s": 0.004,
    "memory_peak_bytes": 9.25 * MIB,
    "pids_peak": 1,
    "files_changed": 0,
    "oom_kills": 0,
}
HEAVY = {
    "wall_s": 75.3,
    "cpu_s": 12.5,
    "cpu_throttled_s": 31.0,
    "memory_peak_bytes": 256 * MIB,
    "memory_limit_bytes": 256 * MIB,
    "pids_peak": 17,
    "files_changed": 1203,
    "oom_kills": 1,
}


def test_the_table_is_aligned_and_reads_as_written_here():
    lines = render([("tests/test_a.py::test_heavy", HEAVY), ("tests/test_a.py::test_light[x-1]", LIGHT)], 110)
    assert lines == [
        "test                                wall     cpu  throttled  memory  limit  pids  files  oom",
        "tests/test_a.py::test_heavy       75.30s  12.50s     31.00s    256M   256M    17   1203    1",
        "tests/test_a.py::test_light[x-1]    12ms     4ms          -    9.2M      -     1      0    0",
    ]


def test_columns_that_say_nothing_are_left_out():
    (head, _) = render([("test_light", {**LIGHT, "cpu_throttled_s": 0.0})], 110)
    assert head.split() == ["test", "wall", "cpu", "memory", "pids", "files"]


def test_a_narrow_terminal_loses_the_least_telling_columns_and_the_front_of_names():
    name = "tests/integration/storage/test_replication.py::TestFailover::test_leader_changes_twice"
    head, line = render([(name, HEAVY)], 60)
    assert head.split() == ["test", "wall", "cpu", "memory", "limit", "oom"]
    assert line.startswith("...")
    assert "_leader_changes_twice" in line[:24]
    assert len(line) <= 60


@given(
    st.lists(
        st.tuples(
            st.text(min_size=1, max_size=60),
            st.dictionaries(st.sampled_from([column.key for column in COLUMNS]), st.floats(0, 1e13), max_size=8),
        ),
        min_size=1,
        max_size=5,
    ),
    st.integers(40, 200),
)
def test_no_line_is_wider_than_the_terminal_and_all_are_equally_wide(rows, width):
    widths = {text_width(line) for line in render(rows, width)}
    assert len(widths) == 1
    assert widths.pop() <= width


def test_a_test_id_cannot_break_a_line_or_speak_to_the_terminal():
    lines = render([("test_x[a\nb\x1b[31m]", LIGHT)], 110)
    assert len(lines) == 2
    assert lines[1].startswith(r"test_x[a\nb\x1b[31m]")


def test_wide_characters_count_as_two_columns():
    lines = render([("test_気温", LIGHT), ("test_temperature", LIGHT)], 80)
    assert len({text_width(line) for line in lines}) == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0ms"),
        (0.0004, "0ms"),
        (0.9996, "1.00s"),
        (1.25, "1.25s"),
        (99.999, "1m40s"),
        (125.4, "2m05s"),
        (11220, "3h07m"),
    ],
)
def test_seconds_are_short(seconds, text):
    assert short_seconds(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0"),
        (1023, "1023"),
        (1024, "1K"),
        (14.2 * MIB, "14.2M"),
        (256 * MIB, "256M"),
        (2**20 - 1, "1.0M"),
        (3 * 2**50, "3072T"),
    ],
)
def test_sizes_are_short_and_in_the_markers_units(size, text):
    assert short_bytes(size) == text


def test_the_heaviest_come_first_by_their_shares_of_the_largest():
    rows = [
        ("idle", {"wall_s": 0.1, "cpu_s": 0.1, "memory_peak_bytes": 10}),
        ("sleeps", {"wall_s": 10.0, "cpu_s": 0.1, "memory_peak_bytes": 10}),
        ("computes", {"wall_s": 9.0, "cpu_s": 9.0, "memory_peak_bytes": 10}),
        ("hoards", {"wall_s": 0.2, "cpu_s": 5.0, "memory_peak_bytes": 100}),
    ]
    assert [name for name, _ in heaviest(rows, None)] == ["computes", "hoards", "sleeps", "idle"]
    assert [name for name, _ in heaviest(rows, 2)] == ["computes", "hoards"]


def test_equal_weights_keep_the_order_of_the_run():
    rows = [(name, LIGHT) for name in "abc"]
    assert heaviest(rows, None) == rows


def test_the_last_line_sums_up_the_run():
    assert totals([("a", HEAVY), ("b", LIGHT)]) == "2 tests in boxes, cpu 12.50s, largest memory peak 256M, 1 OOM kill"
    assert totals([("a", {"wall_s": 1.0})]) == "1 test in boxes"


def test_shortening_keeps_the_end():
    assert shorten("tests/test_a.py::test_b", 12) == "...y::test_b"
    assert shorten("test_b", 12) == "test_b"
    assert text_width(shorten("気温気温気温", 8)) <= 8
