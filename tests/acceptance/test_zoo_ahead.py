"""Tests that are forked ahead give the same answers, and are forked ahead."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.acceptance.comparing import ZOO, Recorded, Runs, assert_same

pytestmark = pytest.mark.needs("root", "overlay", "cgroup:memory")

SUITE = {"test_ahead.py": ZOO / "ahead.py"}
ROW = [f"test_in_a_row[{number}]" for number in range(6)]


def time_of(run: Recorded, name: str, what: str) -> float:
    return float(run.properties(name)[f"time.{what}"])


def without_times(run: Recorded) -> Recorded:
    for report in run.reports():
        report["properties"] = [pair for pair in report["properties"] if not pair[0].startswith("time.")]
    return run


@pytest.mark.parametrize(
    "options", [("-v", "-rA"), ("-q", "-p", "no:warnings"), ("--maxfail=1",), ("--capture=sys", "-rA")], ids=" ".join
)
def test_a_suite_gives_the_same_answers(runs: Runs, options: tuple[str, ...]):
    if options[0] == "-v":
        # os._exit would end the plain run
        options = (*options, "--deselect=test_ahead.py::test_ends_the_process")
    else:
        options = (*options, "-k", "not ends_the_process")
    plain, boxed = runs.both(SUITE, *options)
    assert_same(without_times(plain), without_times(boxed))


def was_ahead(run: Recorded, before: str, name: str) -> bool:
    """Of tests that took NSBOX_ROW; when a process was born is known to a tick of the clock, 10 ms."""
    return time_of(run, name, "born") < time_of(run, before, "ended") - 0.1


def is_ahead(run: Recorded) -> bool:
    return all(was_ahead(run, before, name) for before, name in itertools.pairwise(ROW[2:]))


def test_a_row_of_tests_is_forked_ahead(runs: Runs, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NSBOX_ROW", "0.3")
    run = runs.run(runs.write(SUITE, "boxed"))
    assert is_ahead(run)
    assert all(time_of(run, name, "began") >= time_of(run, before, "ended") for before, name in itertools.pairwise(ROW))
    died = run.of("test_ends_the_process")
    assert "exited with status 3" in died["longrepr"]
    assert all(run.of(f"test_a_row_after_a_death[{number}]")["outcome"] == "passed" for number in range(3))


def test_what_has_ended_is_shown_while_a_test_takes_its_time(runs: Runs):
    suite = {
        "test_times.py": """
            import time
            import pytest

            @pytest.mark.parametrize("number", range(12))
            def test_quick(number): pass

            def test_slow(): time.sleep(3)
        """
    }
    words = [sys.executable, "-u", "-m", "pytest", "-v", "-p", "nsbox", "--sandbox-all", "--sandbox-report=none"]
    with subprocess.Popen(words, cwd=runs.write(suite, "boxed"), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        shown = b""
        while b"test_slow" not in shown:
            shown += os.read(process.stdout.fileno(), 65536)
        began = time.monotonic()
        assert re.findall(rb"test_quick\[(\d+)\] PASSED", shown) == [b"%d" % number for number in range(12)]
        process.stdout.read()
    assert time.monotonic() - began > 1
    assert process.returncode == 0


def test_workers_of_xdist_fork_a_row_ahead(runs: Runs, monkeypatch: pytest.MonkeyPatch):
    runs.autoload()
    monkeypatch.setenv("NSBOX_ROW", "0.3")
    words = ("-n", "1", "-p", "no:hypothesispytest", "-k", "test_in_a_row")
    assert is_ahead(runs.run(runs.write(SUITE, "boxed"), *words))


@pytest.mark.parametrize(
    ("mark", "ahead"),
    [
        ("skipif(False, reason='never')", True),
        ("skipif(condition=False, reason='never')", True),
        ("skipif(False, False, reason='never')", True),
        ("skipif('False', reason='never')", False),
        ("skipif(0, reason='never')", False),
    ],
)
def test_only_marks_that_have_to_be_looked_at_keep_a_test_in_its_turn(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, mark: str, ahead: bool
):
    monkeypatch.setenv("NSBOX_ROW", "0.3")
    source = SUITE["test_ahead.py"].read_text(encoding="utf-8")
    marked = source.replace("def test_in_a_row(", f"@pytest.mark.{mark}\ndef test_in_a_row(")
    assert is_ahead(runs.run(runs.write({"test_ahead.py": marked}, "boxed"), "-k", "test_in_a_row")) is ahead


PLUGINS = ("-p", "timeout", "-p", "rerunfailures", "-p", "pytest_forked", "-o", "timeout=30", "-k", "test_in_a_row")


def test_a_row_is_forked_ahead_beside_plugins_that_keep_nothing_of_it(runs: Runs, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NSBOX_ROW", "0.3")
    directory = runs.write(SUITE, "boxed")
    assert is_ahead(runs.run(directory, *PLUGINS))
    assert not is_ahead(runs.run(directory, *PLUGINS, "--reruns=1"))
    assert not is_ahead(runs.run(directory, *PLUGINS, "--session-timeout=60"))
    assert is_ahead(runs.run(directory, *PLUGINS, "--forked"))


def test_a_row_is_forked_ahead_beside_pyfakefs_until_a_fixture_fakes_something_for_more_than_a_test(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("NSBOX_ROW", "0.3")
    words = ("-p", "pyfakefs.pytest_plugin", "-k", "test_in_a_row")
    assert is_ahead(runs.run(runs.write(SUITE, "boxed"), *words))
    signature = "def times(record_property):"
    source = SUITE["test_ahead.py"].read_text(encoding="utf-8")
    assert signature in source
    faked = source.replace(signature, "def times(fs_module, record_property):\n    fs_module.pause()")
    assert not is_ahead(runs.run(runs.write({"test_ahead.py": faked}, "faked"), *words))


@pytest.mark.parametrize("method", ["signal", "thread"])
def test_timeouts_of_pytest_timeout_in_tests_that_were_forked_ahead(runs: Runs, method: str):
    suite = {
        "test_timeouts.py": """
            import signal, time
            import pytest

            @pytest.mark.parametrize("number", range(4))
            def test_row(number): pass

            @pytest.mark.timeout(1)
            def test_sleeps():
                print("before sleeping")
                time.sleep(60)

            @pytest.mark.parametrize("number", range(4))
            def test_second_row(number): pass

            @pytest.mark.timeout(1)
            def test_cannot_be_interrupted():
                signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
                time.sleep(60)

            @pytest.mark.parametrize("number", range(4))
            def test_third_row(number): pass

            @pytest.fixture
            def slow():
                time.sleep(1)
                yield
                time.sleep(7)

            @pytest.mark.timeout(1, func_only=True)
            def test_of_slow_fixtures(slow): pass
        """
    }
    boxed = runs.run(runs.write(suite, "boxed"), "-p", "timeout", "-o", f"timeout_method={method}", timeout=60)
    boxed.result.assert_outcomes(passed=13, failed=2)
    told = boxed.of("test_sleeps")["sections"] if method == "signal" else boxed.result.outlines
    assert "before sleeping" in str(told)
    outside = "timed out after 1.0 s (pytest-timeout"
    assert (outside in boxed.of("test_sleeps")["longrepr"]) == (method == "thread")
    assert outside in boxed.of("test_cannot_be_interrupted")["longrepr"]
    assert all(boxed.of(name)["duration"] < 20 for name in ("test_sleeps", "test_cannot_be_interrupted"))


def test_a_plugin_that_hears_of_tests_keeps_them_in_turn(runs: Runs):
    runs.ahead = False
    run = runs.run(runs.write(SUITE, "boxed"), "-k", "test_in_a_row")
    for before, name in itertools.pairwise(ROW):
        assert time_of(run, name, "born") >= time_of(run, before, "ended") - 0.01  # the clock ticks of a start


LISTENER = """
    import pytest

    class Listener:
        def __init__(self, config):
            self.stop_after = config.getoption("stop_after")
            self.config = config

        def pytest_runtest_logreport(self, report):
            if report.when == "teardown" and report.nodeid.endswith(f"[{self.stop_after}]"):
                self.config.pluginmanager.get_plugin("session").shouldstop = "heard enough"

    def pytest_addoption(parser):
        parser.addoption("--stop-after", type=int)

    def pytest_configure(config):
        config.pluginmanager.register(Listener(config))
"""


@pytest.fixture
def listener(runs: Runs) -> Path:
    return runs.install("listener", LISTENER)


def test_a_row_is_forked_ahead_beside_a_plugin_that_only_listens(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, listener: Path
):
    monkeypatch.setenv("NSBOX_ROW", "0.3")
    directory = runs.write(SUITE, "boxed")
    words = ("-p", "listener", "-k", "test_in_a_row")
    assert is_ahead(runs.run(directory, *words))
    (directory / "listener.py").write_bytes(listener.read_bytes())
    assert not is_ahead(runs.run(directory, *words)), "the suite's own"


@pytest.mark.parametrize(
    "part",
    [
        "@pytest.fixture\ndef heard(): pass\n",
        "def pytest_runtest_call(item): pass\n",
        "def pytest_runtest_setup(item): pass\n",
    ],
    ids=["a fixture", "a hook in the test's process", "a hook before it"],
)
def test_a_plugin_that_listens_and_has_a_part_in_the_test_keeps_tests_in_turn(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, listener: Path, part: str
):
    monkeypatch.setenv("NSBOX_ROW", "0.3")
    listener.write_text(listener.read_text(encoding="utf-8") + part, encoding="utf-8")
    assert not is_ahead(runs.run(runs.write(SUITE, "boxed"), "-p", "listener", "-k", "test_in_a_row"))


@pytest.mark.usefixtures("listener")
def test_who_only_listens_may_stop_the_run_after_any_test(runs: Runs):
    words = ("-p", "listener", "--stop-after=3", "-k", "test_in_a_row")
    plain, boxed = (without_times(run) for run in runs.both(SUITE, *words))
    assert_same(plain, boxed)
    boxed.result.stdout.fnmatch_lines(["*heard enough*"])
    boxed.result.assert_outcomes(passed=4, deselected=plain.result.parseoutcomes()["deselected"])


def test_endings_of_tests_that_were_forked_ahead(runs: Runs):
    run = runs.run(
        runs.write(
            {
                "test_endings.py": """
                    import os, signal, time
                    import pytest

                    @pytest.mark.parametrize("number", range(3))
                    def test_row(number): pass
                    @pytest.mark.sandbox(timeout=2)
                    def test_takes_long(): time.sleep(60)
                    @pytest.mark.parametrize("number", range(3))
                    def test_second_row(number): pass
                    def test_is_killed(): os.kill(os.getpid(), signal.SIGKILL)
                    @pytest.mark.parametrize("number", range(3))
                    def test_third_row(number): pass
                    def test_closes_everything():
                        os.closerange(3, 1000)
                    @pytest.mark.parametrize("number", range(3))
                    def test_fourth_row(number): pass
                    @pytest.fixture
                    def dies(): os._exit(0)
                    def test_dies_in_setup(dies): pass
                """
            },
            "boxed",
        )
    )
    assert "timed out after 2.0 s (sandbox timeout)" in run.of("test_takes_long")["longrepr"]
    assert "killed by SIGKILL" in run.of("test_is_killed")["longrepr"]
    assert "exited with status 0" in run.of("test_dies_in_setup", "setup")["longrepr"]
    assert run.of("test_closes_everything")["outcome"] == "failed"
    rows = [report for report in run.reports() if "row" in report["nodeid"]]
    assert len(rows) == 4 * 3 * 3
    assert all(report["outcome"] == "passed" for report in rows)
    assert all("sandbox.wall_s" in dict(report["properties"]) for report in rows if report["when"] == "teardown")


@pytest.mark.parametrize(
    "limit", [("--sandbox-set", "timeout=10000000"), ("-p", "timeout", "--timeout=1e7")], ids=lambda words: words[1]
)
def test_limits_beyond_what_one_call_can_wait(runs: Runs, limit: tuple[str, ...]):
    run = runs.run(runs.write(SUITE, "boxed"), *limit, "-k", "test_in_a_row", timeout=60)
    run.result.assert_outcomes(passed=6)


def test_an_os_that_a_fixture_fakes_for_a_whole_module(runs: Runs):
    """As pyfakefs does it, in pytest's own process, where pages have been pinned already."""
    suite = {
        "test_before.py": """
            import pytest

            @pytest.mark.parametrize("number", range(6))
            def test_row(number): pass
        """,
        "test_faked.py": """
            import os
            import sys
            import pytest

            class Faked:
                def __getattr__(self, name):
                    return self.refuse if name in ("open", "close", "fdopen", "read") else getattr(os, name)

                def refuse(self, *arguments, **options):
                    raise OSError(9, "Bad file descriptor in the fake filesystem")

            @pytest.fixture(scope="module", autouse=True)
            def faked():
                holders = [m for name, m in sys.modules.items() if name.startswith("pytest_nsbox.")]
                holders = [module for module in holders if vars(module).get("os") is os]
                for module in holders:
                    module.os = Faked()
                yield
                for module in holders:
                    module.os = os

            @pytest.mark.parametrize("number", range(30))
            def test_row(number): pass
        """,
    }
    boxed = runs.run(runs.write(suite, "boxed"))
    boxed.result.assert_outcomes(passed=36)


COLLECTORS = {
    "conftest.py": """
        import os, time
        import pytest

        @pytest.fixture(autouse=True)
        def times(record_property):
            with open("/proc/self/stat") as file:
                ticks = int(file.read().rpartition(") ")[2].split()[19])
            record_property("time.born", ticks / os.sysconf("SC_CLK_TCK"))
            yield
            time.sleep(float(os.environ.get("NSBOX_ROW", "0")))
            record_property("time.ended", time.clock_gettime(time.CLOCK_BOOTTIME))
    """,
    "test_a.py": "def test_a1(): pass\ndef test_a2(): pass\n",
    "test_b.py": """
        class TestOne:
            def test_b1(self): pass
        class TestTwo:
            class TestInner:
                def test_b2(self): pass
    """,
    "test_c.txt": ">>> 1 + 1\n2\n",
    "test_d.txt": ">>> 1 + 2\n3\n",
    "test_e.py": """
        import unittest
        class One(unittest.TestCase):
            def test_e1(self): pass
        class Two(unittest.TestCase):
            def test_e2(self): pass
            def test_e3(self): pass
    """,
    "test_f.py": """
        import unittest
        SET_UP = []
        class Prepared(unittest.TestCase):
            @classmethod
            def setUpClass(cls): SET_UP.append("class")
            @classmethod
            def tearDownClass(cls): SET_UP.remove("class")
            def test_f1(self): assert SET_UP == ["class"]
        class Plain(unittest.TestCase):
            def test_f2(self): assert SET_UP == []
    """,
    "test_g.py": """
        SET_UP = []
        def setup_module(): SET_UP.append("module")
        def teardown_module(): SET_UP.remove("module")
        def test_g1(): assert SET_UP == ["module"]
    """,
    "test_h.py": """
        import unittest
        class Plain(unittest.TestCase):
            def test_h1(self): pass
        @unittest.skip("all of it")
        class Skipped(unittest.TestCase):
            def test_h2(self): raise AssertionError
        class TestFails:
            def test_h3(self): raise AssertionError
        class TestAfter:
            def test_h4(self): pass
            def test_h5(self): pass
    """,
    "test_i/__init__.py": "SET_UP = []\ndef setup_module(): SET_UP.append('package')\n",
    "test_i/test_i.py": "from test_i import SET_UP\ndef test_i1(): assert SET_UP == ['package']\n",
    "test_j.py": "def test_j1(): pass\n",
}  # fmt: skip
IN_TURN = ["test_f1", "test_f2", "test_g1", "test_h1", "test_h4", "test_i1", "test_j1"]
AHEAD = ["test_b1", "test_b2", "test_c.txt", "test_d.txt", "test_e1", "test_e2", "test_e3"]


def test_collectors_that_do_nothing_are_no_reason_to_wait(runs: Runs, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NSBOX_ROW", "0.3")
    plain, boxed = runs.both(COLLECTORS)
    names = [report["nodeid"] for report in boxed.reports() if report["when"] == "teardown"]
    ahead = {
        name: was_ahead(boxed, before, name)
        for before, name in itertools.pairwise(names)
        if "time.ended" in boxed.properties(before) and "time.born" in boxed.properties(name)
    }
    assert all(is_ahead for name, is_ahead in ahead.items() if name.endswith(tuple(AHEAD)))
    assert not any(is_ahead for name, is_ahead in ahead.items() if name.endswith(tuple(IN_TURN)))
    assert_same(without_times(plain), without_times(boxed))
