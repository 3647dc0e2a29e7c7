"""Groups: ``scope="class"`` and ``scope="module"`` give one box and one process to several tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.acceptance.comparing import ZOO, Recorded, Runs, assert_same, difference

pytestmark = pytest.mark.needs("root", "overlay", "cgroup:memory")

SUITE: dict[str, str | Path] = {
    "conftest.py": ZOO / "groups_conftest.py",
    "test_groups.py": ZOO / "groups.py",
    "test_more.py": """
        def test_one(own): own.append(1)
        def test_two(of_module): assert of_module == [1]
    """,
    "test_split.py": "def test_one_of_each_parameter(session_parameter): pass",
}
# Of a group, outer fixtures that later tests request are set up before the fork, and end in pytest's process.
OUTER = ("everywhere", "fails", "session_parameter")
REPORTERS = ("logstart", "logreport", "logfinish", "protocol")


def both(runs: Runs, files: dict[str, str | Path], scope: str, *args: str) -> tuple[Recorded, Recorded]:
    plain = runs.run(runs.write(files, "plain"), *args, boxed=False)
    boxed = runs.run(runs.write(files, "boxed"), f"--sandbox-set=scope={scope}", *args)
    return plain, boxed


def steps(run: Recorded, *, reporters: bool) -> list[str]:
    found = [line.partition(" ")[2] for line in run.log]
    inner = [line for line in found if not (line.startswith("fixture") and line.split(" ")[1] in OUTER)]
    return [line for line in inner if line.startswith(REPORTERS) == reporters]


def test_a_module_in_one_box_gives_what_one_process_gives(runs: Runs):
    plain, boxed = both(runs, SUITE, "module", "-rA")
    assert_same(plain, boxed)
    found = []
    for reporters in (True, False):
        found += difference("hooks", steps(plain, reporters=reporters), steps(boxed, reporters=reporters))
    assert not found, "\n".join(found)
    check_processes(boxed)


def check_processes(boxed: Recorded) -> None:
    """Reporters and outer fixtures in pytest's process, once; the rest of a module in one other."""
    owners: dict[str, set[str]] = {"outer": set(), "reporters": set(), "inner": set()}
    outer: Counter[str] = Counter()
    for line in boxed.log:
        who, what, *names = line.split(" ")
        if what.startswith("fixture") and names[0] in OUTER:
            outer[" ".join([what, *names])] += 1
            owners["outer"].add(who)
        else:
            owners["reporters" if what.startswith(REPORTERS) else "inner"].add(who)
    pytests = owners["reporters"]
    assert owners["outer"] == pytests
    assert len(pytests) == 1
    # The first test's set-up hook begins before the fork. A group is each file, and a session fixture's next parameter.
    assert len(owners["inner"] - pytests) == 4
    assert set(outer.values()) == {1}, outer


@pytest.mark.parametrize(
    "options", [["-s", "-v"], ["-x", "-q"], ["--capture=sys"], ["-o", "log_cli=true"]], ids=" ".join
)
def test_options_mean_the_same_in_a_group(runs: Runs, options: list[str]):
    assert_same(*both(runs, SUITE, "module", *options, "-k", "not session_fixture"))


CLASSES: dict[str, str | Path] = {
    "test_classes.py": """
        import os
        import pytest

        pytestmark = pytest.mark.sandbox(scope="class")
        seen = []

        class TestOne:
            def test_a(self):
                seen.append(os.getpid())

            def test_b(self, record_property):
                assert seen == [os.getpid()]
                record_property("pid", os.getpid())
                open("/tmp/of-one", "w").close()

        class TestTwo:
            def test_a(self):
                assert seen == []
                assert not os.path.exists("/tmp/of-one")
                seen.append(os.getpid())

            @pytest.mark.sandbox(scope="function")
            def test_alone(self):
                assert seen == []

            @pytest.mark.sandbox(False)
            def test_plain(self):
                assert seen == []

            def test_b(self):
                assert seen == []

        def test_outside_any_class():
            seen.append(1)

        def test_outside_again():
            assert seen == []
    """
}


def test_a_class_has_one_box_and_other_tests_have_their_own(runs: Runs):
    boxed = runs.run(runs.write(CLASSES, "boxed"))
    boxed.result.assert_outcomes(passed=8)


DEATHS: dict[str, str | Path] = {
    "test_deaths.py": """
        import os, signal, time
        import pytest
        from pytest_nsbox import SandboxCrash

        pytestmark = pytest.mark.sandbox(scope="module", mem="128M")

        @pytest.fixture(scope="module")
        def shared():
            return []

        @pytest.fixture
        def dies_late():
            yield
            os._exit(7)

        def test_before(shared): shared.append(1)
        def test_dies(shared):
            print("printed before the death")
            os._exit(3)
        def test_new_box(shared):
            assert shared == []
            shared.append(2)
        @pytest.mark.xfail(raises=SandboxCrash, strict=True)
        def test_crashes_as_expected(shared): os.kill(os.getpid(), signal.SIGSEGV)
        @pytest.mark.sandbox(timeout=2)
        def test_takes_too_long(shared): time.sleep(60)
        def test_out_of_memory(): bytearray(300 << 20)
        def test_dies_in_teardown(dies_late): pass
        @pytest.mark.sandbox(artifacts=["/tmp/made-*"])
        def test_artifact(shared):
            assert shared == []
            open("/tmp/made-here", "w").close()
        def test_end(shared): assert shared == [] and os.path.exists("/tmp/made-here")
    """
}


def test_a_death_is_one_tests_and_the_rest_of_the_group_gets_a_new_box(runs: Runs):
    boxed = runs.run(runs.write(DEATHS, "boxed"))
    boxed.result.assert_outcomes(passed=5, failed=3, errors=1, xfailed=1)
    died = boxed.of("test_dies")
    assert died["longrepr"].startswith("exited with status 3 before the test ended")
    assert ["Captured stdout call", "printed before the death\n"] in died["sections"]
    assert boxed.of("test_takes_too_long")["longrepr"].startswith("timed out after 2.0 s (sandbox timeout)")
    assert boxed.of("test_out_of_memory")["longrepr"].startswith("OOM-killed: memory limit 128.0 MiB")
    assert boxed.of("test_dies_in_teardown", "teardown")["longrepr"].startswith("exited with status 7")
    copied = [path.name for path in (boxed.path / "sandbox-artifacts").rglob("*") if path.is_file()]
    assert copied == ["made-here"]


USAGE: dict[str, str | Path] = {
    "test_usage.py": """
        import time
        import pytest

        def burn(seconds):
            end = time.process_time() + seconds
            while time.process_time() < end:
                pass

        def test_burns(): burn(0.3)
        def test_rests(): time.sleep(0.3)
        def test_allocates(): bytearray(64 << 20)
        def test_does_not(sandbox):
            open("/tmp/changed-by-a-group-1", "w").close()
            assert sandbox.usage()["cpu_s"] < 0.2
        def test_changes_files():
            open("/tmp/changed-by-a-group-1", "w").close()
            open("/tmp/changed-by-a-group-2", "w").close()
    """
}


def test_usage_is_each_tests_own(runs: Runs):
    boxed = runs.run(runs.write(USAGE, "boxed"), "--sandbox-set=scope=module")
    boxed.result.assert_outcomes(passed=5)
    used = {
        name: {key: float(value) for key, value in boxed.properties(f"test_{name}").items()}
        for name in ("burns", "rests", "allocates", "does_not", "changes_files")
    }
    assert used["burns"]["sandbox.cpu_s"] >= 0.3
    assert used["rests"]["sandbox.cpu_s"] < 0.15
    assert used["rests"]["sandbox.wall_s"] >= 0.3
    assert used["does_not"]["sandbox.wall_s"] < used["burns"]["sandbox.wall_s"] + used["rests"]["sandbox.wall_s"]
    assert used["allocates"]["sandbox.memory_peak_bytes"] > 64 << 20
    if os.path.isdir("/sys/fs/cgroup/memory"):  # v1 lets a peak begin anew
        assert used["does_not"]["sandbox.memory_peak_bytes"] < 32 << 20
    assert [used[name]["sandbox.files_changed"] for name in ("does_not", "changes_files")] == [1, 1]


def test_contradictions_within_a_group_are_usage_errors(runs: Runs):
    suite: dict[str, str | Path] = {
        "test_group.py": """
            import pytest

            @pytest.mark.sandbox(scope="class", mem="256M")
            class TestIt:
                def test_a(self): pass
                @pytest.mark.sandbox(timeout=5, artifacts=["*.txt"])
                def test_may_differ(self): pass
                @pytest.mark.sandbox(mem="64M", pids=7)
                def test_b(self): pass
                @pytest.mark.sandbox(mem="64M", scope="function")
                def test_alone(self): pass
        """
    }
    boxed = runs.run(runs.write(suite, "boxed"))
    assert boxed.result.ret == 4
    text = boxed.result.stdout.str() + boxed.result.stderr.str()
    assert (
        "test_group.py::TestIt::test_b: sandbox marker: mem='64M' here, mem='256M' in test_group.py::TestIt::test_a: "
        "by scope='class' they share a box (accepted: one box for the group, in which only timeout and artifacts "
        "differ, or scope='function' for this test)"
    ) in text
    assert "pids=7 here, no pids in test_group.py::TestIt::test_a" in text
    assert text.count("they share a box") == 2


def test_reruns_stay_in_the_box_of_their_group(runs: Runs):
    runs.autoload()
    suite: dict[str, str | Path] = {
        "test_reruns.py": """
            import pytest

            @pytest.fixture(scope="module")
            def shared():
                print("set up")
                return []

            @pytest.fixture
            def fails_once(shared):
                shared.append("fixture")
                assert len(shared) > 1

            def test_first(shared): shared.append(1)

            @pytest.mark.flaky(reruns=3)
            def test_third_time(shared):
                shared.append(1)
                print("length", len(shared))
                assert len(shared) == 4

            @pytest.mark.flaky(reruns=1)
            def test_never(shared): assert 0

            def test_last(shared): assert len(shared) == 4
        """
    }
    args = ("-rA", "-p", "no:randomly", "-p", "no:asyncio")
    plain, boxed = both(runs, suite, "module", *args)
    assert_same(plain, boxed)
    boxed.result.stdout.fnmatch_lines(["*3 rerun*"])


def test_a_group_stays_in_one_worker_of_xdist(runs: Runs):
    runs.autoload()
    suite: dict[str, str | Path] = {
        f"test_{name}.py": """
            import os

            seen = []

            def test_a(tmp_path): seen.append(os.getpid())
            def test_b(tmp_path): assert seen == [os.getpid()]
            def test_c(tmp_path): assert seen == [os.getpid()]
        """
        for name in ("one", "two", "three")
    }
    args = ("-n2", "--dist=loadscope", "--sandbox-set=scope=module", "-p", "no:hypothesispytest")
    boxed = runs.run(runs.write(suite, "boxed"), *args)
    boxed.result.assert_outcomes(passed=9)
    spread = runs.run(runs.write({**suite, "pytest.ini": "[pytest]\n"}, "spread"), "-n2", "--dist=load", *args[2:])
    assert sum(spread.result.parseoutcomes().values()) == 9


INTERRUPTED: dict[str, str | Path] = {
    "conftest.py": """
        import os
        import pytest

        FD = os.open(os.environ["NSBOX_LOG"], os.O_WRONLY | os.O_APPEND)

        def say(what):
            os.write(FD, what.encode() + b"\\n")

        @pytest.fixture(scope="session")
        def outer():
            yield
            say("outer torn down")

        @pytest.fixture(scope="module")
        def shared(outer):
            yield
            say("shared torn down")

        @pytest.fixture
        def inner(shared):
            yield
            say("inner torn down")

        @pytest.hookimpl(trylast=True)
        def pytest_runtest_logfinish(nodeid):
            if "between" in nodeid:
                say("finished")
                raise KeyboardInterrupt
    """,
    "test_interrupted.py": """
        import time
        from conftest import say

        def test_before(inner): pass

        def test_long(inner):
            say("running")
            time.sleep(60)
    """,
}


def interrupted(runs: Runs, files: dict[str, str | Path]) -> tuple[int, str, list[str]]:
    directory = runs.write(files, "boxed")
    log = directory.parent / "log"
    log.touch()
    command = [sys.executable, "-m", "pytest", "-p", "nsbox", "-p", "no:cacheprovider", "--sandbox-all"]
    with subprocess.Popen(
        [*command, "--sandbox-set=scope=module"],
        cwd=directory,
        env={**os.environ, "NSBOX_LOG": str(log)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        deadline = time.monotonic() + 20
        while not log.read_text().startswith(("running", "inner torn down\nrunning")) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
            if "running" in log.read_text():
                os.killpg(process.pid, signal.SIGINT)
                break
        output, _ = process.communicate(timeout=30)
    return process.returncode, output, log.read_text().splitlines()


def test_ctrl_c_tears_down_the_test_and_its_group(runs: Runs):
    status, output, said = interrupted(runs, INTERRUPTED)
    assert status == 2, output
    assert said == ["inner torn down", "running", "inner torn down", "shared torn down", "outer torn down"]
    assert "1 passed" in output
    assert "test_interrupted.py:9: KeyboardInterrupt" in output


def test_an_interruption_between_two_tests_of_a_group_tears_it_down(runs: Runs):
    suite = {**INTERRUPTED, "test_interrupted.py": "def test_between(inner): pass\n\ndef test_never(inner): pass\n"}
    status, output, said = interrupted(runs, suite)
    assert status == 2, output
    assert said == ["inner torn down", "finished", "shared torn down", "outer torn down"]
    assert "1 passed" in output
