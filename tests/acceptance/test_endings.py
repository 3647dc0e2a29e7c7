"""Tests that die: what the report says, in which phase, and that the next test runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.comparing import ZOO, Event, Recorded, Runs

pytestmark = pytest.mark.needs("root", "overlay", "cgroup:memory")

COPIED = "(inherited Python objects are copied when touched)"


@pytest.fixture
def endings(runs: Runs) -> Recorded:
    """The run of zoo/endings.py, once for all tests of this module."""
    return runs.once("endings", {"test_endings.py": ZOO / "endings.py"}, "-rA")


def died(run: Recorded, name: str, when: str = "call") -> list[str]:
    """The lines of a report that must have failed."""
    report = run.of(name, when)
    assert report["outcome"] == "failed"
    assert report["duration"] > 0
    lines: list[str] = report["longrepr"].splitlines()
    assert report["crash"][2] == lines[0]
    assert Path(report["crash"][0]).name == "test_endings.py"
    return lines


def section(report: Event, title: str) -> str:
    return "".join(text for name, text in report["sections"] if name == title)


def test_every_other_test_ran_and_the_run_ended_as_usual(endings: Recorded):
    assert endings.result.ret == 1
    for name in ("test_after_oom", "test_leaves_processes_and_threads", "test_last"):
        assert [report["outcome"] for report in endings.reports(name)] == ["passed"] * 3
    assert endings.of("test_leaves_processes_and_threads")["duration"] < 5
    assert "INTERNALERROR" not in endings.result.stdout.str()


def test_an_oom_kill_names_limit_and_peak_and_the_key_to_raise(endings: Recorded):
    lines = died(endings, "test_oom")
    assert lines[0] == "OOM-killed: memory limit 64.0 MiB, peak 64.0 MiB"
    assert lines[-1] == f"raise mem=, e.g. mem='128M' {COPIED}"
    report = endings.of("test_oom")
    assert section(report, "Captured stdout call") == "before the end\n"
    assert section(report, "Captured stderr call") == "and errors\n"
    assert endings.properties("test_oom")["sandbox.oom_kills"] == "1"
    endings.result.stdout.fnmatch_lines(["FAILED test_endings.py::test_oom - OOM-killed: memory limit 64.0 MiB*"])


def test_xfail_knows_the_endings_by_their_classes(endings: Recorded):
    for name in ("expected_oom", "expected_timeout", "expected_crash", "expected_by_the_base_class"):
        assert endings.of(f"test_{name}")["outcome"] == "skipped"
        assert "wasxfail" in endings.of(f"test_{name}")["others"]
    assert died(endings, "test_oom_is_no_timeout")[0].startswith("OOM-killed: ")


def test_an_oom_kill_that_the_test_survives_leaves_its_outcome_alone(endings: Recorded):
    line = "OOM-killed: memory limit 64.0 MiB, peak 64.0 MiB"
    name = "test_survives_the_oom_of_a_child"
    assert endings.of(name)["outcome"] == "passed"
    assert section(endings.of(name, "teardown"), "sandbox").startswith(line)
    assert endings.properties(name)["sandbox.oom_kills"] == "1"
    failed = endings.of("test_fails_by_the_oom_of_a_child")
    assert "CalledProcessError" in failed["longrepr"]
    assert f"E   {line}" in failed["longrepr"].splitlines()
    assert failed["crash"][2].splitlines()[-1] == line


def test_a_failure_at_the_limit_of_processes_names_the_key_to_raise(endings: Recorded):
    line = "raise pids=, e.g. pids=2: the limit of 1 processes and threads was met"
    failed = endings.of("test_fails_by_the_limit_of_processes")
    assert "BlockingIOError" in failed["longrepr"]
    assert failed["longrepr"].splitlines().count(f"E   {line}") == 1
    assert failed["crash"][2].splitlines()[-1] == line
    assert endings.of("test_outlives_the_limit_of_processes")["outcome"] == "passed"


def test_a_timeout_shows_the_stacks_of_all_threads(endings: Recorded):
    lines = died(endings, "test_timeout")
    assert lines[0] == "timed out after 1.0 s (sandbox timeout)"
    text = "\n".join(lines)
    assert "in blocks_in_a_function" in text
    assert "in test_timeout" in text
    assert text.count("hread 0x") == 2
    assert lines[-1] == "raise timeout=, e.g. timeout='2s'"
    assert section(endings.of("test_timeout"), "Captured stdout call") == "before sleeping\n"
    assert 1 <= endings.of("test_timeout")["duration"] < 5


def test_a_timeout_ends_tests_that_hear_no_signal(endings: Recorded):
    for name in ("test_timeout_of_a_test_that_blocks_every_signal", "test_timeout_of_a_stopped_test"):
        assert died(endings, name)[0] == "timed out after 0.5 s (sandbox timeout)"
        assert endings.of(name)["duration"] < 5


def test_a_timeout_is_reported_in_its_phase(endings: Recorded):
    assert died(endings, "test_timeout_in_setup", "setup")[0] == "timed out after 0.5 s (sandbox timeout)"
    assert [report["when"] for report in endings.reports("test_timeout_in_setup")] == ["setup", "teardown"]
    assert died(endings, "test_timeout_in_teardown", "teardown")[0] == "timed out after 0.5 s (sandbox timeout)"
    assert endings.of("test_timeout_in_teardown")["outcome"] == "passed"
    report = endings.of("test_timeout_in_teardown", "teardown")
    assert section(report, "Captured stdout teardown") == "slow end begins\n"


def test_a_crash_shows_the_signal_and_the_traceback_of_faulthandler(endings: Recorded):
    lines = died(endings, "test_segfault")
    assert lines[0] == "killed by SIGSEGV"
    text = "\n".join(lines)
    assert "Fatal Python error: Segmentation fault" in text
    assert "in crashes_in_a_function" in text
    assert "in test_segfault" in text
    assert section(endings.of("test_segfault"), "Captured stdout call") == "before the crash\n"
    lines = died(endings, "test_abort")
    assert lines[0] == "killed by SIGABRT"
    assert "Fatal Python error: Aborted" in lines


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGUSR1", "SIGBUS", "SIGRTMIN"])
def test_a_signal_is_named(endings: Recorded, name: str):
    assert died(endings, f"test_signal[{name}]")[0] == f"killed by {name}"


def test_a_limit_of_cpu_seconds_names_its_key(endings: Recorded):
    lines = died(endings, "test_cpu_seconds")
    # Soft and hard limit are the same, and the kernel looks at the hard one first.
    assert lines[0] == "killed by SIGKILL"
    assert lines[-1] == "raise ulimits={'cpu': ...}: the limit on cpu sends this signal"


@pytest.mark.parametrize("status", [0, 1, 3, 255])
def test_an_exit_is_told_with_its_status(endings: Recorded, status: int):
    name = f"test_exit[{status}]"
    assert died(endings, name) == [f"exited with status {status} before the test ended"]
    assert section(endings.of(name), "Captured stdout call") == "printed\n"
    assert float(endings.properties(name)["sandbox.wall_s"]) > 0


def test_an_exit_is_told_in_its_phase(endings: Recorded):
    assert died(endings, "test_exit_in_setup", "setup") == ["exited with status 4 before the test ended"]
    assert section(endings.of("test_exit_in_setup", "setup"), "Captured stdout setup") == "printed in setup\n"
    assert endings.of("test_exit_in_setup", "teardown")["outcome"] == "passed"
    assert died(endings, "test_exit_in_teardown", "teardown") == ["exited with status 5 before the test ended"]
    report = endings.of("test_exit_in_teardown", "teardown")
    assert section(report, "Captured stdout teardown") == "printed in teardown\n"
    assert section(report, "Captured stdout call") == "printed in call\n"
    assert endings.of("test_exit_after_a_failure")["crash"][2].startswith("AssertionError: the failure before")
    assert died(endings, "test_exit_after_a_failure", "teardown")
    assert died(endings, "TestInClass::test_exit") == ["exited with status 6 before the test ended"]


def test_a_test_that_destroys_its_channel_fails_and_says_so(endings: Recorded):
    for name in ("test_closes_every_descriptor", "test_writes_rubbish_to_every_descriptor"):
        reports = endings.reports(name)
        assert any(report["outcome"] == "failed" for report in reports), name
        assert all(report["duration"] < 10 for report in reports)


def test_the_run_goes_on_after_deaths_under_xdist_and_stops_with_exitfirst(runs: Runs):
    suite = {
        "test_deaths.py": """
            import os
            import pytest

            @pytest.mark.parametrize("number", range(6))
            def test_dies(number):
                if number % 2:
                    os._exit(number)
        """
    }
    directory = runs.write(suite, "boxed")
    stopped = runs.run(directory, "-x")
    stopped.result.assert_outcomes(passed=1, failed=1)
    runs.autoload()
    spread = runs.run(directory, "-n2", "-p", "no:hypothesispytest")
    spread.result.assert_outcomes(passed=3, failed=3)
    assert spread.of("test_dies[3]")["longrepr"] == "exited with status 3 before the test ended"
    assert spread.properties("test_dies[3]")["sandbox.wall_s"]
