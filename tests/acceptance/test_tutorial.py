"""The tutorial's code does what the tutorial says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.md"

pytestmark = pytest.mark.needs("root", "overlay", "cgroup:memory")


def code(index: int) -> str:
    blocks = re.finditer(r"^```python\n(.*?)^```$", TUTORIAL.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [block[1] for block in blocks][index]


def test_the_first_box(pytester: pytest.Pytester):
    pytester.makepyfile(test_box=code(0))
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*test_box.py::test_may_break_everything*"])


def test_limits(pytester: pytest.Pytester):
    pytester.makepyfile(test_limits=code(1))
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(
        [
            "*OOM-killed: memory limit 64.0 MiB, peak 64.0 MiB",
            "*raise mem=*",
            "*timed out after 1.0 s (sandbox timeout)",
        ]
    )


def test_expected_endings(pytester: pytest.Pytester):
    pytester.makepyfile(test_expected=code(2))
    pytester.runpytest_subprocess().assert_outcomes(passed=2, xfailed=1)
