"""Looking for the smallest value that works."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_nsbox.policy.bisection import SCALES, bisect, scale_of
from pytest_nsbox.policy.errors import BadValueError
from pytest_nsbox.policy.keys import KEYS


@given(st.integers(0, 1000), st.integers(0, 10**6), st.integers(1, 1000), st.integers(0, 10**6))
def test_the_answer_works_and_a_step_less_does_not(low: int, more: int, precision: int, limit: int):
    high, asked = low + more, []

    def works(value: float) -> bool:
        asked.append(value)
        return value >= limit

    found = bisect(low, high, precision, works)
    if limit > high:
        assert (found, asked) == (None, [high])
        return
    assert found is not None
    assert max(low, limit) <= found <= high
    assert found == low or found - precision < limit
    assert len(asked) <= 3 + math.log2(more / precision + 2)
    assert all(low <= value <= high for value in asked)


def test_values_are_written_as_a_marker_takes_them():
    assert set(SCALES) <= set(KEYS)
    for key, low, written in (
        ("mem", "16M", "16M"),
        ("disk", 1 << 30, "1G"),
        ("pids", "7", 7),
        ("cpu", "150%", 1.5),
        ("timeout", "100ms", 0.1),
    ):
        scale = scale_of(key)
        assert scale.write(scale.read(low)) == written


def test_other_keys_are_refused():
    with pytest.raises(BadValueError, match="'net' has no smallest value"):
        scale_of("net")
