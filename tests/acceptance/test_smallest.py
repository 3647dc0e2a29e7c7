"""``nsbox.smallest``, and containers that see their limits."""

from __future__ import annotations

import sys

import pytest

pytestmark = pytest.mark.needs(
    "root", "overlay", "user namespace", "cgroup:memory", "cgroup:pids", "cgroup:cpu", "seccomp listener"
)


def test_the_smallest_limit_is_found_with_the_record_of_its_steps(pytester: pytest.Pytester):
    pytester.makepyfile(
        f"""
        import pytest
        from pytest_nsbox import BoxFailed

        HOLD = [{sys.executable!r}, "-I", "-S", "-c", "block = bytearray(40 << 20); block[::4096] = block[::4096]"]

        def test_memory(nsbox):
            found = nsbox.smallest(HOLD, "mem", "8M", "256M", precision="8M")
            print(found)
            size = int(found.value.removesuffix("M"))
            assert 40 <= size <= 72
            assert [step.value for step in found.steps[:2]] == ["256M", "8M"]
            assert found.steps[0].succeeded and not found.steps[1].succeeded
            assert found.steps[1].result.oom_killed
            assert len(found.steps) <= 8

        def test_a_callable(nsbox):
            found = nsbox.smallest(lambda pids: pids * pids >= 50, "pids", 1, 100)
            assert (found.key, found.value) == ("pids", 8)
            assert str(found).startswith("smallest pids: 8\\n  100: enough\\n  1: too little\\n")

            def fails(value):
                assert value > 3, "too few"
            assert str(nsbox.smallest(fails, "pids", 1, 9).steps[1]) == "1: too little (AssertionError: too few)"

        def test_what_is_never_enough(nsbox):
            with pytest.raises(BoxFailed, match="not even mem='64M' is enough: 64M: too little .status 3"):
                nsbox.smallest(["sh", "-c", "echo no; exit 3"], "mem", "8M", "64M")

        def test_what_makes_no_sense(nsbox):
            with pytest.raises(TypeError, match="looks for mem, and is given it too"):
                nsbox.smallest(["true"], "mem", "8M", "64M", **{{"mem": "1G"}})
            with pytest.raises(ValueError, match="low='1G' is more than high='64M'"):
                nsbox.smallest(["true"], "mem", "1G", "64M")
            with pytest.raises(ValueError, match="no smallest value"):
                nsbox.smallest(["true"], "net", 1, 2)
        """
    )
    pytester.runpytest_subprocess().assert_outcomes(passed=4)


def test_containers_see_their_limits_and_so_does_what_is_run_in_them_later(pytester: pytest.Pytester):
    pytester.makepyfile(
        f"""
        PYTHON = [{sys.executable!r}, "-I", "-S", "-c"]
        ASK = "import os; print(os.sysconf('SC_PHYS_PAGES') >> 8, os.cpu_count(), open('/proc/meminfo').readline())"

        def test_it(nsbox):
            with nsbox.start(["sleep", "60"], mem="64M", cpu=0.5, proc="limits") as box:
                for _ in range(2):
                    said = box.exec([*PYTHON, ASK], check=True).stdout
                    assert said.split() == ["64", "1", "MemTotal:", "65536", "kB"]
            found = nsbox.run([*PYTHON, ASK], mem="64M", cpu=0.5, proc="limits", check=True)
            assert found.stdout.split()[:2] == ["64", "1"]
        """
    )
    pytester.runpytest_subprocess().assert_outcomes(passed=1)
