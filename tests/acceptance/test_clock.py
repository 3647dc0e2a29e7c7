"""Clocks of boxes, and what pytest measures by them."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.needs("root", "overlay", "user namespace", "time namespace")

SUITE = """
import pytest, time

pytestmark = pytest.mark.sandbox(clock={"monotonic": 100000})

@pytest.mark.parametrize("number", range(3))
def test_alone(number):
    assert time.monotonic() > 100000

@pytest.mark.sandbox(scope="class")
class TestTogether:
    def test_first(self): pass
    def test_second(self): assert time.monotonic() > 100000
"""
CONFTEST = """
durations = []

def pytest_runtest_logreport(report):
    durations.append(report.duration)

def pytest_sessionfinish():
    assert len(durations) == 15
    assert 0 <= min(durations) and max(durations) < 60, durations
"""


@pytest.mark.parametrize("hooked", [False, True], ids=["ahead", "in turn"])
def test_durations_are_without_what_the_clock_jumps_by(pytester: pytest.Pytester, hooked: bool):
    pytester.makepyfile(SUITE)
    if hooked:
        pytester.makeconftest(CONFTEST)
    result = pytester.runpytest_subprocess("--durations=3", "-vv")
    result.assert_outcomes(passed=5)
    slowest = [line for line in result.outlines if " setup " in line or " call " in line or " teardown " in line]
    assert slowest
    assert all(0 <= float(line.partition("s ")[0]) < 60 for line in slowest), slowest
