from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_nsbox.policy.errors import BadValueError
from pytest_nsbox.policy.units import (
    format_cpu,
    format_cpuset,
    format_seconds,
    format_size,
    parse_count,
    parse_cpu,
    parse_cpuset,
    parse_duration,
    parse_patience,
    parse_positive_size,
    parse_size,
    write_size,
)

PARSERS = (parse_size, parse_positive_size, parse_duration, parse_cpu, parse_cpuset, parse_count)
JUNK: tuple[object, ...] = (
    None,
    True,
    False,
    "",
    " ",
    "x",
    "²",
    "٣",
    "1_000",
    "1e3",
    "-1",
    "+1",
    "0x10",
    b"1",
    object(),
    {},
    {"a": 1},
    "1,",
    "-",
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (0, 0),
        (268435456, 268435456),
        ("0", 0),
        ("1024", 1024),
        ("256M", 256 * 2**20),
        ("256m", 256 * 2**20),
        ("256MB", 256 * 2**20),
        ("256MiB", 256 * 2**20),
        ("256mib", 256 * 2**20),
        (" 64K ", 2**16),
        ("1G", 2**30),
        ("2TiB", 2**41),
        ("7B", 7),
    ],
)
def test_sizes_are_digits_with_powers_of_1024(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "1.5G",
        "256 M",
        "M",
        "iB",
        "5iB",
        "1KK",
        "1P",
        "1KiBB",
        "1BB",
        -1,
        2.0,
        float("inf"),
        2**63,
        "9" * 5000,
        "99999999T",
    ],
)
def test_what_is_no_size_is_refused_with_what_is_accepted(text):
    with pytest.raises(BadValueError, match=r"\(accepted: bytes, or digits with K, M, G or T .* such as '256M'\)"):
        parse_size(text)


def test_a_size_of_zero_is_refused_where_the_kernel_would_read_no_limit():
    assert parse_positive_size("1") == 1
    with pytest.raises(BadValueError, match="a size of zero"):
        parse_positive_size("0K")


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (268435456, "256.0 MiB"),
        (2**20 - 1, "1.0 MiB"),
        (2**30, "1.0 GiB"),
        (2**40, "1.0 TiB"),
        (2**52, "4096.0 TiB"),
    ],
)
def test_sizes_are_shown_with_one_decimal(size, text):
    assert format_size(size) == text


@given(st.integers(0, 2**63 - 1))
def test_a_written_size_reads_back(size):
    assert parse_size(write_size(size)) == size


@given(st.integers(0, 2**53 - 1))
def test_a_shown_size_is_close_to_the_size_and_never_reaches_1024(size):
    number, unit = format_size(size).split()
    scale = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}[unit]
    assert abs(float(number) * scale - size) <= 0.0500001 * scale
    assert unit == "TiB" or float(number) < 1024


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30),
        ("100ms", 0.1),
        ("1.5s", 1.5),
        (".5s", 0.5),
        ("250us", 0.00025),
        ("2m", 120),
        ("1h", 3600),
        ("45", 45),
        (45, 45),
        (0.25, 0.25),
        (" 5 s ", 5),
    ],
)
def test_durations_are_seconds_or_numbers_with_a_unit(text, seconds):
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["0s", 0, -1, 0.0, float("inf"), float("nan"), 10**400, "1.2.3s", ".s", "s", "1d", "1 0s", "infs"]
)
def test_what_is_no_duration_is_refused_with_what_is_accepted(text):
    with pytest.raises(BadValueError, match=r"\(accepted: seconds, or a number with us, ms, s, m or h"):
        parse_duration(text)


def test_who_waits_may_wait_for_nothing():
    assert [parse_patience(value) for value in (0, "0s", 5, "30s")] == [0.0, 0.0, 5.0, 30.0]
    for value in (-1, float("nan"), float("inf"), "x", True, None, 10**400):
        with pytest.raises(BadValueError, match=r"not a duration( of zero or more)? \(accepted: seconds"):
            parse_patience(value)


@pytest.mark.parametrize(
    ("seconds", "text"), [(30, "30.0 s"), (0.5, "0.5 s"), (0.05, "0.05 s"), (1.25, "1.25 s"), (3600, "3600.0 s")]
)
def test_seconds_are_shown_with_one_decimal_unless_that_loses_something(seconds, text):
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("20%", 0.2), ("150%", 1.5), (0.2, 0.2), (2, 2.0), ("0.5", 0.5), ("0.1%", 0.001), ("100 %", 1), ("2", 2)],
)
def test_cpus_are_percent_of_one_or_a_number(text, cpus):
    assert parse_cpu(text) == cpus


@pytest.mark.parametrize(
    "text", [0, "0%", "0.09%", 0.0009, -1, float("nan"), float("inf"), 10**400, "%", "20%%", "many"]
)
def test_what_is_no_share_of_cpus_is_refused_with_what_is_accepted(text):
    with pytest.raises(
        BadValueError, match=r"\(accepted: a number of CPUs .* or percent of one CPU such as '20%'; at least 0.1%\)"
    ):
        parse_cpu(text)


@given(st.integers(1, 10**6))
def test_percent_means_the_same_as_the_number(thousandths):
    assert parse_cpu(f"{thousandths / 10}%") == pytest.approx(thousandths / 1000)
    assert parse_cpu(format_cpu(thousandths / 1000)) == pytest.approx(thousandths / 1000)


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("0-1,3", (0, 1, 3)),
        ("3,1", (1, 3)),
        ("0", (0,)),
        (2, (2,)),
        ([1, 0, 1], (0, 1)),
        (" 0 , 2-3 ", (0, 2, 3)),
        ("5-5", (5,)),
    ],
)
def test_cpu_sets_are_numbers_and_ranges(text, cpus):
    assert parse_cpuset(text) == cpus


@pytest.mark.parametrize(
    "text", ["3-1", "0-999999999", "8192", "1-", "-1", "0,,1", "a", [], ["1"], [True], -1, 0.0, [-1]]
)
def test_what_is_no_cpu_set_is_refused_with_what_is_accepted(text):
    with pytest.raises(BadValueError, match=r"not a set of CPUs \(accepted: CPU numbers and ranges such as '0-1,3'\)"):
        parse_cpuset(text)


@given(st.sets(st.integers(0, 200), min_size=1))
def test_a_shown_cpu_set_reads_back(cpus):
    ordered = tuple(sorted(cpus))
    assert parse_cpuset(format_cpuset(ordered)) == ordered


def test_counts_have_bounds_that_the_error_tells():
    assert parse_count("64") == parse_count(64) == 64
    with pytest.raises(BadValueError, match=r"out of range \(accepted: 2 to 262144\)"):
        parse_count(1, 2, 262144)
    with pytest.raises(BadValueError, match=r"out of range \(accepted: a whole number, 1 or more\)"):
        parse_count(0)
    with pytest.raises(BadValueError, match="not a whole number"):
        parse_count(1.0)


@pytest.mark.parametrize("parse", PARSERS, ids=lambda parse: parse.__name__)
@pytest.mark.parametrize("value", JUNK, ids=repr)
def test_junk_is_refused_and_never_raises_anything_else(parse, value):
    with pytest.raises(BadValueError):
        parse(value)


@pytest.mark.parametrize("parse", PARSERS, ids=lambda parse: parse.__name__)
@given(value=st.one_of(st.text(), st.integers(), st.floats(), st.lists(st.integers())))
def test_any_value_is_parsed_or_refused(parse, value):
    try:
        parse(value)
    except BadValueError as error:
        assert error.accepted
