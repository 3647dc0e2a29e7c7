"""Which tests get a box, with which spec: marks, ini, command line, and what is said of mistakes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.acceptance.comparing import Runs

pytestmark = pytest.mark.needs("root", "overlay", "cgroup:memory")

MERGED = {
    "pytest.ini": """
        [pytest]
        sandbox_defaults =
            mem=200M
            pids=70
            env={"FROM" = "ini", "INI" = "1"}
    """,
    "test_merging.py": """
        import os
        import pytest

        pytestmark = pytest.mark.sandbox(mem="100M", timeout=60, hostname="of-module")

        @pytest.mark.sandbox(mem="90M", hostname="of-class")
        class TestClass:
            @pytest.mark.sandbox(hostname="of-function")
            def test_the_closest_wins(self, sandbox):
                spec = sandbox.spec
                assert os.uname().nodename == spec.hostname == "of-function"
                assert (spec.mem, spec.timeout, spec.pids) == (90 * 2**20, 60, 70)

            def test_class(self, sandbox):
                assert (os.uname().nodename, sandbox.spec.mem) == ("of-class", 90 * 2**20)

            @pytest.mark.sandbox(False)
            def test_opted_out(self):
                assert os.uname().nodename != "of-class"

        def test_ini_fills_what_is_unset(sandbox):
            assert (sandbox.spec.mem, sandbox.spec.pids) == (100 * 2**20, 70)
            assert os.environ["FROM"] == "ini"

        def test_command_line_fills_what_the_ini_left(sandbox):
            assert sandbox.spec.cpu == 0.5

        @pytest.mark.sandbox(mem=["80M", "160M"])
        def test_values_in_a_list_are_parameters(sandbox, request):
            assert request.node.name.endswith(f"[mem={sandbox.spec.mem >> 20}M]")
            assert request.node.name.count("[") == 1

        @pytest.mark.parametrize("n", [1, pytest.param(2, marks=pytest.mark.sandbox(mem="70M"))])
        def test_marks_of_parameters(sandbox, n):
            assert sandbox.spec.mem == {1: 100, 2: 70}[n] * 2**20
    """,
    "test_plain.py": """
        import os
        import pytest

        INSIDE = os.stat("/proc/self/ns/mnt").st_ino

        def boxed():
            return os.stat("/proc/self/ns/mnt").st_ino != INSIDE

        def test_unmarked():
            assert boxed() == (os.environ["EXPECT"] == "all")

        @pytest.mark.sandbox
        def test_marked():
            assert boxed() == (os.environ["EXPECT"] != "off")

        @pytest.mark.sandbox(False)
        def test_never():
            assert not boxed()

        def test_fixture(sandbox):
            assert boxed()
            assert sandbox.status == "running" and sandbox.ports == {}
            assert sandbox.name

        def test_requested_dynamically(request):
            if os.environ["EXPECT"] == "marked":
                return
            request.getfixturevalue("sandbox")
            assert boxed()
    """,
}


def plain_run(runs: Runs, directory: Path, *args: str) -> pytest.RunResult:
    """Without --sandbox-all."""
    os.chdir(directory)
    return runs.pytester.runpytest_subprocess("-p", "nsbox", *args)


def test_marks_of_function_class_and_module_merge_key_by_key(runs: Runs):
    boxed = runs.run(
        runs.write(MERGED, "boxed"), "test_merging.py", "--sandbox-set", "pids=60", "--sandbox-set", "cpu=50%"
    )
    boxed.result.assert_outcomes(passed=9)
    boxed.result.stdout.fnmatch_lines(["sandbox: defaults:*"])


def test_marked_all_and_off(runs: Runs, monkeypatch: pytest.MonkeyPatch):
    directory = runs.write(MERGED, "boxed")
    monkeypatch.setenv("EXPECT", "marked")
    plain_run(runs, directory, "test_plain.py").assert_outcomes(passed=5)
    monkeypatch.setenv("EXPECT", "all")
    plain_run(runs, directory, "test_plain.py", "--sandbox-all").assert_outcomes(passed=5)
    plain_run(runs, directory, "test_plain.py", "-o", "sandbox_all=true").assert_outcomes(passed=5)
    monkeypatch.setenv("EXPECT", "off")
    result = plain_run(runs, directory, "test_plain.py", "--sandbox-all", "--sandbox-off")
    result.assert_outcomes(passed=3, skipped=2)
    result.stdout.fnmatch_lines(["sandbox: off (--sandbox-off)*"])


PROBLEMS = {
    "test_problems.py": """
        import pytest

        @pytest.mark.sandbox(memmory="1G")
        def test_unknown_key(): pass

        @pytest.mark.sandbox(mem="lots")
        def test_bad_value(): pass

        @pytest.mark.sandbox(cpu=100000)
        def test_more_cpus_than_there_are(): pass

        @pytest.mark.sandbox("mem=1G")
        def test_positional(): pass

        @pytest.mark.sandbox(False)
        def test_contradiction(sandbox): pass

        @pytest.mark.sandbox(caps=["net"], scope="module")
        def test_no_capability(): pass

        def test_fine(): print("RAN")
    """
}
SAID = [
    "*test_problems.py::test_unknown_key: sandbox marker: unknown key 'memmory' (did you mean 'mem'? known: cpu, *",
    "*test_problems.py::test_bad_value: sandbox marker: *mem*'lots'*",
    "*test_problems.py::test_more_cpus_than_there_are: *cpu*100000*",
    "*test_problems.py::test_positional: *sandbox('mem=1G') is not understood*",
    "*test_problems.py::test_contradiction: *requests the fixture 'sandbox'*",
    "*test_problems.py::test_no_capability: *'net' is no capability*",
]


def test_all_problems_are_told_at_once_before_any_test_runs(runs: Runs):
    directory = runs.write(PROBLEMS, "boxed")
    result = plain_run(runs, directory)
    assert result.ret == 4
    (result.stderr if result.errlines else result.stdout).fnmatch_lines(SAID)
    assert "RAN" not in result.stdout.str()
    assert "passed" not in result.stdout.str()


def test_xdist_tells_all_problems_once_and_exits_with_4(runs: Runs):
    runs.autoload()
    directory = runs.write(PROBLEMS, "boxed")
    os.chdir(directory)
    result = runs.pytester.runpytest_subprocess("-n2", "-p", "no:hypothesispytest")
    assert result.ret == 4
    text = result.stdout.str() + result.stderr.str()
    assert text.count("unknown key 'memmory'") == 1
    assert text.count("is not understood") == 1
    assert "passed" not in text


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--sandbox-set", "mem=much", "--sandbox-set", "color=red"], ["*mem*much*", "*unknown key 'color'*"]),
        (["--sandbox-report=few"], ["*--sandbox-report*few*"]),
        (["--sandbox-unavailable=perhaps"], ["*sandbox-unavailable*perhaps*fail*skip*run*"]),
        # pytest 9.2 refuses it by itself, and names no option.
        (["-o", "sandbox_pool=many"], ["*many*"]),
    ],
    ids=lambda value: value[0].lstrip("-") if isinstance(value, list) and value[0].startswith("-") else "",
)
def test_a_wrong_option_is_a_usage_error(runs: Runs, args: list[str], said: list[str]):
    result = plain_run(runs, runs.write({"test_a.py": "def test_a(): pass"}, "boxed"), *args)
    assert result.ret == 4
    result.stderr.fnmatch_lines(said)


@pytest.mark.parametrize("kind", ["json", "html"])
def test_a_file_that_cannot_be_written_is_told(runs: Runs, kind: str):
    path = f"/proc/nothing/x.{kind}"
    boxed = runs.run(runs.write({"test_a.py": "def test_a(): pass"}, "boxed"), f"--sandbox-{kind}={path}")
    assert boxed.result.ret == 4
    boxed.result.stdout.fnmatch_lines([f"--sandbox-{kind}: cannot write {path}: *"])


# --- a machine on which boxes cannot be had --------------------------------------------------------------------------

UNAVAILABLE = {
    "test_a.py": """
        import os
        import pytest

        @pytest.mark.sandbox(mem="100M")
        def test_limited():
            print("ran in", os.getpid())

        def test_other():
            pass
    """
}


def without_cgroups(runs: Runs, directory: Path, *args: str) -> pytest.RunResult:
    """In a mount namespace where control groups cannot be written, as in a container of Docker's."""
    os.chdir(directory)
    readonly = "findmnt -rno TARGET -t cgroup,cgroup2 | while read t; do mount -o remount,bind,ro $t; done"
    command = ["unshare", "--mount", "sh", "-c", f'{readonly}; exec "$0" "$@"', sys.executable, "-m", "pytest"]
    return runs.pytester.run(*command, "-p", "nsbox", *args)


def test_a_box_that_cannot_be_had_fails_the_test_is_skipped_or_done_without(runs: Runs):
    directory = runs.write(UNAVAILABLE, "boxed")
    why = "*Read-only file system*"
    result = without_cgroups(runs, directory)
    assert result.ret == 1
    outcomes = result.parseoutcomes()
    assert outcomes.get("errors", 0) + outcomes.get("failed", 0) == 1
    assert outcomes["passed"] == 1
    result.stdout.fnmatch_lines([why])

    result = without_cgroups(runs, directory, "--sandbox-unavailable=skip", "-rs")
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines([f"SKIPPED{why}"])

    # Never silently.
    result = without_cgroups(runs, directory, "--sandbox-unavailable=run")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines([why])


def test_the_doctor_says_what_works_and_exits_accordingly(runs: Runs):
    directory = runs.write(UNAVAILABLE, "boxed")
    result = plain_run(runs, directory, "--sandbox-doctor")
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        ["pytest-nsbox *: what works here", "Linux *, Python *", "  ok *", "Tests can run in boxes here*"]
    )
    assert "test_limited" not in result.stdout.str()

    result = without_cgroups(runs, directory, "--sandbox-doctor")
    result.stdout.fnmatch_lines(["*issing  cgroup *Read-only file system*", "*fix: *"])


def test_a_user_without_power_is_told_what_is_missing(runs: Runs):
    directory = runs.write(UNAVAILABLE, "boxed")
    os.chdir(directory)
    command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-m", "pytest", "-p", "nsbox"]
    result = runs.pytester.run(*command, "--sandbox-doctor")
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [
            "Linux *, root, without CAP_SYS_ADMIN*",
            "  MISSING *",
            "*fix: *",
            "Tests cannot run in boxes here: *",
        ]
    )
    result = runs.pytester.run(*command, "--sandbox-all")
    assert result.ret == 1
    assert "passed" not in result.stdout.str()
    assert "INTERNALERROR" not in result.stdout.str()
    runs.pytester.run(*command, "--sandbox-all", "--sandbox-unavailable=skip").assert_outcomes(skipped=2)
    runs.pytester.run(*command, "--sandbox-all", "--sandbox-unavailable=run").assert_outcomes(passed=2)
