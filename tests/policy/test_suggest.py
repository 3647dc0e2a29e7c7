"""Limits suggested from usage."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_nsbox.policy.keys import KEYS
from pytest_nsbox.policy.spec import Layer, Spec
from pytest_nsbox.policy.suggest import MIB, Suggestion, combine, render, suggest


@pytest.mark.parametrize(
    ("usage", "marker"),
    [
        (
            {"memory_peak_bytes": 3 * MIB, "pids_peak": 1, "wall_s": 0.02},
            '@pytest.mark.sandbox(mem="20M", pids=8, timeout="5s")',
        ),
        (
            {"memory_peak_bytes": 200 * MIB, "pids_peak": 9, "wall_s": 2.1},
            '@pytest.mark.sandbox(mem="320M", pids=32, timeout="15s")',
        ),
        ({"wall_s": 5000.0}, '@pytest.mark.sandbox(timeout="25200s")'),
        ({}, "@pytest.mark.sandbox()"),
    ],
)
def test_head_room_is_rounded_up_to_what_reads_well(usage: dict[str, float], marker: str):
    assert suggest(usage).marker() == marker


@given(st.integers(0, 1 << 40), st.integers(1, 10**5), st.floats(0, 10**5))
def test_a_test_fits_into_what_is_suggested_for_it(peak: int, pids: int, wall: float):
    found = suggest({"memory_peak_bytes": peak, "pids_peak": pids, "wall_s": wall})
    spec = Spec.build([Layer(dict(found.items()), "")])
    assert (spec.mem, spec.pids, spec.timeout) == (found.mem, found.pids, found.timeout)
    assert peak < (found.mem or 0) <= max(2 * peak, 1.25 * peak + 20 * MIB)
    assert 2 * pids <= (found.pids or 0) <= max(4 * pids, 8)
    assert 5 * wall <= (found.timeout or 0)
    assert set(dict(found.items())) <= set(KEYS)


def test_what_is_said_ends_with_defaults_that_suit_all():
    rows = [
        ("a::one", {"memory_peak_bytes": 3 * MIB, "pids_peak": 20, "wall_s": 0.02}),
        ("a::two", {"memory_peak_bytes": 100 * MIB, "pids_peak": 1, "wall_s": 7.0}),
    ]
    assert render(rows, 1) == [
        "a::one",
        '    @pytest.mark.sandbox(mem="20M", pids=64, timeout="5s")',
        "a::two",
        '    @pytest.mark.sandbox(mem="160M", pids=8, timeout="60s")',
        "",
        "for all of them, in the ini:",
        '    sandbox_defaults = ["mem=160M", "pids=64", "timeout=60s"]',
        "1 test did not pass and got no suggestion",
    ]
    cases = [(f"a::many[{end}]", {"pids_peak": count}) for end, count in (("x::y", 1), ("[z]", 9))]
    odd = [("a[1].py::test", {"pids_peak": 1})]
    assert render([*cases, *odd], 0)[:4] == [
        "a::many (2 cases)",
        "    @pytest.mark.sandbox(pids=32)",
        "a[1].py::test",
        "    @pytest.mark.sandbox(pids=8)",
    ]
    assert combine([]) == Suggestion()
    assert render([], 0) == ["no test passed in a box: there is nothing to suggest limits from (try --sandbox-all)"]
