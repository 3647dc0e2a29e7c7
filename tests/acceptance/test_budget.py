"""``--sandbox-suggest`` and ``--sandbox-baseline``: what a run learns for the next one."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.needs("root", "overlay", "user namespace", "cgroup:memory", "cgroup:pids")

SUITE = """
    import os, pytest

    def test_hungry():
        held = bytearray(int(os.environ["HOLD"]) << 20)
        held[::4096] = b"x" * len(held[::4096])

    def test_modest(): pass

    @pytest.mark.sandbox(False)
    def test_without(): pass

    def test_failing(): assert os.environ["HOLD"] != "41"
"""


def test_limits_are_suggested_and_growth_fails_the_run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    pytester.makepyfile(test_it=SUITE)
    monkeypatch.setenv("HOLD", "41")
    first = pytester.runpytest_subprocess("--sandbox-all", "--sandbox-suggest", "--sandbox-baseline=usage.json")
    first.assert_outcomes(passed=3, failed=1)
    first.stdout.fnmatch_lines(
        [
            "*= sandbox suggestions =*",
            "test_it.py::test_hungry",
            '    @pytest.mark.sandbox(mem="??M", pids=8, timeout="*s")',
            "test_it.py::test_modest",
            '    @pytest.mark.sandbox(mem="??M", pids=8, timeout="*s")',
            "for all of them, in the ini:",
            '    sandbox_defaults = ?"mem=??M", "pids=8", "timeout=*s"?',
            "1 test did not pass and got no suggestion",
        ]
    )
    first.stdout.fnmatch_lines(["sandbox: usage of 2 tests added to usage.json, which holds 1 run"])
    first.stdout.no_fnmatch_line("test_it.py::test_without")
    kept = json.loads((pytester.path / "usage.json").read_text(encoding="utf-8"))
    assert sorted(kept["tests"]) == ["test_it.py::test_hungry", "test_it.py::test_modest"]

    monkeypatch.setenv("HOLD", "40")
    compare = ("--sandbox-all", "--sandbox-baseline=usage.json", "--sandbox-fail-on-increase=20%")
    same = pytester.runpytest_subprocess(*compare)
    assert same.ret == pytest.ExitCode.OK
    same.stdout.fnmatch_lines(
        ["sandbox: no usage grew by more than 20% of usage.json", "sandbox: 1 test not in the baseline"]
    )

    monkeypatch.setenv("HOLD", "80")
    grown = pytester.runpytest_subprocess(*compare, "-k", "hungry or modest")
    grown.assert_outcomes(passed=2, deselected=2)
    assert grown.ret == pytest.ExitCode.TESTS_FAILED
    grown.stdout.fnmatch_lines(
        [
            "*= sandbox: usage grew by more than 20% of usage.json =*",
            "test  * counter  baseline *now  growth",
            "test_it.py::test_hungry  memory * +*%",
            "sandbox: CPU time is judged from 3 runs in the baseline on; some tests have 1",
        ]
    )
    grown.stdout.no_fnmatch_line("test_it.py::test_modest*+*")
    assert json.loads((pytester.path / "usage.json").read_text(encoding="utf-8")) == kept


def test_what_cannot_be_compared_is_a_usage_error(pytester: pytest.Pytester):
    pytester.makepyfile("def test_it(): pass")
    (pytester.path / "text.json").write_text("{", encoding="utf-8")
    for arguments, message in (
        (("--sandbox-fail-on-increase=5",), "*--sandbox-fail-on-increase=5: --sandbox-baseline=FILE says *"),
        (("--sandbox-baseline=x", "--sandbox-fail-on-increase=some"), "*increase='some': not a percentage *"),
        (("--sandbox-baseline=text.json",), "*--sandbox-baseline=text.json: Expecting *"),
    ):
        result = pytester.runpytest_subprocess(*arguments)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines([message])


def test_a_file_that_cannot_be_written_is_told(pytester: pytest.Pytester):
    pytester.makepyfile("def test_it(): pass")
    (pytester.path / "file").write_text("", encoding="utf-8")
    result = pytester.runpytest_subprocess("--sandbox-all", "--sandbox-baseline=file/usage.json")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines(["--sandbox-baseline: cannot write */file/usage.json: *"])
