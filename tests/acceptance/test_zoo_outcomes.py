"""Outcomes, texts, sections, properties, warnings: each test's answer in a box is the one it gives without."""

from __future__ import annotations

import pytest

from tests.acceptance.comparing import ZOO, Runs

pytestmark = pytest.mark.needs("root", "overlay", "cgroup:memory")

OUTCOMES = {"test_outcomes.py": ZOO / "outcomes.py"}


@pytest.mark.parametrize("ahead", [True, False], ids=["ahead", "in turn"])
def test_every_outcome_is_the_plain_one(runs: Runs, ahead: bool):
    runs.ahead = ahead
    plain, boxed = runs.same(OUTCOMES, "-rA", "--durations=0", "--durations-min=100")
    assert len({report["nodeid"] for report in boxed.reports()}) > 75
    assert boxed.result.parseoutcomes() == plain.result.parseoutcomes()


def test_unittest_and_doctest_are_the_plain_ones(runs: Runs):
    _, boxed = runs.same({"test_cases.py": ZOO / "cases.py"}, "--doctest-modules", "-v", "-rA")
    for test in ("::test_passes", "test_cases.py::test_cases"):
        assert "sandbox.cpu_s" in boxed.properties(test)


@pytest.mark.skipif(pytest.version_tuple < (9,), reason="subtests came with pytest 9")
def test_subtests_are_the_plain_ones(runs: Runs):
    # -s: plain pytest lets a TestCase's subTest reports be captured as if the test had printed them
    runs.same({"test_subtests.py": ZOO / "subtests.py"}, "-v", "-rA", "-s")
