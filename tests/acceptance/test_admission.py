"""``sandbox_budget_mem`` and ``sandbox_budget_cpu``: what runs at once, in workers of xdist, fits the budget."""

from __future__ import annotations

from itertools import pairwise

import pytest

pytestmark = pytest.mark.needs("root", "overlay", "user namespace", "cgroup:memory", "cgroup:cpu")

SUITE = """
    import time
    import pytest

    @pytest.mark.parametrize("number", range(6))
    def test_takes_its_time(number, request):
        base = request.config._tmp_path_factory.getbasetemp().parent
        began = time.monotonic()
        time.sleep(0.1)
        (base / f"{number}.span").write_text(f"{began} {time.monotonic()}")
"""


def test_workers_of_xdist_share_a_budget(pytester: pytest.Pytester):
    pytest.importorskip("xdist")
    pytester.makepyfile(SUITE)
    pytester.makeini("[pytest]\nsandbox_budget_mem = 100M\nsandbox_budget_cpu = none")
    base = pytester.path / "base"
    options = ("-n2", "--sandbox-all", "--sandbox-set", "mem=60M", "--sandbox-set", "cpu=1", f"--basetemp={base}")
    pytester.runpytest_subprocess(*options).assert_outcomes(passed=6)
    spans = sorted(tuple(map(float, path.read_text().split())) for path in base.glob("**/*.span"))
    assert len(spans) == 6
    assert all(first[1] <= second[0] for first, second in pairwise(spans))


def test_a_box_that_never_fits_is_refused(pytester: pytest.Pytester):
    pytester.makepyfile(SUITE)
    pytester.makeini("[pytest]\nsandbox_budget_mem = 1G\nsandbox_budget_cpu = 50%")
    result = pytester.runpytest_subprocess("--sandbox-all", "--sandbox-set", "mem=2G", "--sandbox-set", "cpu=1")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    text = result.stderr.str()
    assert "mem='2G': more than all boxes may have together (accepted: up to 1G, sandbox_budget_mem)" in text
    assert "cpu=1: more than all boxes may have together (accepted: up to 0.5, sandbox_budget_cpu)" in text
