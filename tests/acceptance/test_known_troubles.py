"""What is known to go wrong where tests run in forks of pytest, seen in other plugins: it goes as without boxes."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.acceptance.comparing import ZOO, Recorded, Runs, difference

pytestmark = pytest.mark.needs("root", "overlay", "cgroup:memory")

EVERY_OTHER = """
    import pytest

    def pytest_collection_modifyitems(items):
        for item in items[::2]:
            item.add_marker(pytest.mark.sandbox(False))
"""


def test_tests_with_and_without_boxes_share_the_fixtures_of_their_module(runs: Runs):
    suite: dict[str, str | Path] = {
        "conftest.py": ZOO / "fixtures_conftest.py",
        "test_fixtures.py": ZOO / "fixtures.py",
        "test_fixtures_other.py": ZOO / "fixtures_other.py",
        "every_other.py": EVERY_OTHER,
        "pytest.ini": "[pytest]\nmarkers = sandbox: of the plugin\n",
    }
    # What a test outside boxes changes stays changed, as without boxes.
    args = ("-rA", "-p", "every_other", "--deselect", "test_fixtures.py::test_module_state")
    plain, boxed = runs.same(suite, *args)
    steps = [[line.partition(" ")[2] for line in run.log] for run in (plain, boxed)]
    found = difference("set-ups and tear-downs", *steps)
    assert not found, "\n".join(found)
    assert {line.split(" ")[0] for line in boxed.log if line.split(" ")[1] == "outer"} == {str(boxed.pid)}


@pytest.mark.parametrize("ending", ["pytest.exit('late', returncode=7)", "raise KeyboardInterrupt", "1 / 0"])
def test_an_outer_fixtures_tear_down_ends_the_run_as_without_boxes(runs: Runs, ending: str):
    suite = {
        "conftest.py": """
            import os
            import pytest

            LOG = os.open(os.environ["NSBOX_LOG"], os.O_WRONLY | os.O_APPEND)

            @pytest.fixture(scope="session")
            def outer():
                yield
                os.write(LOG, b"outer torn down\\n")
        """,
        "test_one.py": f"""
            import pytest

            @pytest.fixture(scope="module")
            def ends(outer):
                yield
                {ending}

            def test_first(ends): pass
            def test_second(ends): pass
        """,
        "test_two.py": "def test_third(outer): pass\n",
    }
    plain, boxed = runs.same(suite)
    assert boxed.log == plain.log == ["outer torn down"]
    assert boxed.result.ret == plain.result.ret


def test_properties_and_attributes_that_cannot_be_sent(runs: Runs):
    suite = {
        "conftest.py": """
            import threading
            import pytest

            @pytest.hookimpl(wrapper=True)
            def pytest_runtest_makereport(item, call):
                report = yield
                report.a_lock = threading.Lock()
                report.a_function = lambda: 1
                return report
        """,
        "test_odd.py": """
            import datetime
            import pathlib
            import pytest

            VALUES = [{1}, pathlib.Path("/x"), datetime.date(2020, 1, 2), b"bytes", (1, [2]), {"a": {3}}, 10**30, 1.5]

            @pytest.mark.parametrize("number", range(len(VALUES)))
            def test_odd(number, record_property, record_xml_attribute):
                record_property("value", VALUES[number])
                record_xml_attribute("kind", VALUES[number])

            def test_last(record_testsuite_property):
                record_testsuite_property("value", pathlib.Path("/y"))
        """,
    }
    args = ("--junitxml=junit.xml", "-o", "junit_family=xunit1", "-W", "ignore")
    plain, boxed = runs.both(suite, *args)
    assert boxed.result.ret == plain.result.ret == 0
    assert properties(boxed) == properties(plain)
    assert len(properties(plain)) == 17


def properties(run: Recorded) -> list[str]:
    """Of junit.xml: properties less ours, and an attribute of each test."""
    cases = ET.parse(run.path / "junit.xml").getroot()
    told = [f"{each.get('name')}={each.get('value')}" for each in cases.iter("property")]
    kinds = [f"kind={case.get('kind')}" for case in cases.iter("testcase") if case.get("kind") is not None]
    return [text for text in told if not text.startswith("sandbox.")] + kinds


def test_what_pytest_registered_for_its_own_end_does_not_run_in_boxes(runs: Runs):
    suite = {
        "conftest.py": """
            import atexit
            import os
            import threading

            LOG = os.open(os.environ["NSBOX_LOG"], os.O_WRONLY | os.O_APPEND)

            def say(*words):
                os.write(LOG, " ".join(map(str, words)).encode() + b"\\n")

            atexit.register(say, "at exit")
            threading._register_atexit(say, "threads end")

            def pytest_sessionfinish():
                say("session finish")

            def pytest_unconfigure():
                say("unconfigure")
        """,
        "test_three.py": """
            import pytest

            @pytest.mark.parametrize("number", range(3))
            def test_short(number): pass
        """,
    }
    plain, boxed = runs.same(suite)
    assert boxed.log == plain.log == ["session finish", "unconfigure", "threads end", "at exit"]


def test_locks_that_another_thread_holds_at_the_fork_are_bounded_by_the_timeout(runs: Runs):
    suite = {
        "conftest.py": """
            import logging
            import threading
            import time

            LOCK = threading.Lock()
            END = threading.Event()

            def holds():
                while not END.is_set():
                    with LOCK:
                        time.sleep(0.01)

            def logs():
                while not END.is_set():
                    logging.getLogger("busy").debug("busy")

            THREADS = [threading.Thread(target=target) for target in (holds, logs)]
            for thread in THREADS:
                thread.start()

            def pytest_unconfigure():
                END.set()
                for thread in THREADS:
                    thread.join()
        """,
        "test_locks.py": """
            import logging
            import pytest
            from conftest import LOCK

            @pytest.mark.parametrize("number", range(10))
            def test_logs(number):
                logging.getLogger("test").warning("of the test")

            @pytest.mark.sandbox(timeout=2)
            def test_waits_for_a_thread_that_is_not_in_its_box():
                with LOCK:
                    raise AssertionError("the lock was free")

            def test_last(): pass
        """,
    }
    boxed = runs.run(runs.write(suite, "boxed"), "-W", "error")
    boxed.result.assert_outcomes(passed=11, failed=1)


def test_a_process_that_outlives_its_test_holds_up_nobody(runs: Runs):
    runs.autoload()
    suite = {
        "test_leaves.py": """
            import os
            import subprocess
            import time

            def test_leaves():
                # With pytest's descriptors, those of xdist's connection to its controller as well.
                subprocess.Popen(["sleep", "1000"], close_fds=False, start_new_session=True)
                if os.fork() == 0:
                    time.sleep(1000)

            def test_last(): pass
        """
    }
    for distributed in ([], ["-n1"]):
        boxed = runs.run(runs.write(suite, "boxed"), *distributed, "-p", "no:hypothesispytest", timeout=60)
        boxed.result.assert_outcomes(passed=2)


def test_the_test_that_an_oom_kill_ends_is_named_by_the_workers_of_xdist(runs: Runs):
    runs.autoload()
    suite = {
        "test_memory.py": """
            import pytest

            @pytest.mark.sandbox(mem="48M")
            def test_too_much():
                print("before the end")
                bytearray(200 << 20)

            @pytest.mark.parametrize("number", range(4))
            def test_others(number): pass
        """
    }
    boxed = runs.run(runs.write(suite, "boxed"), "-n2", "-p", "no:hypothesispytest")
    boxed.result.assert_outcomes(passed=4, failed=1)
    died = boxed.of("test_too_much")
    assert died["longrepr"].startswith("OOM-killed: memory limit 48.0 MiB")
    assert ["Captured stdout call", "before the end\n"] in died["sections"]
    assert "crashed" not in boxed.result.stdout.str()


def test_the_whole_sessions_timeout_of_pytest_timeout_ends_the_run(runs: Runs):
    suite = {
        "test_slow.py": """
            import time

            def test_one(): time.sleep(1.2)
            def test_two(): pass
        """
    }
    plain, boxed = runs.both(suite, "-p", "timeout", "--session-timeout=1")
    for run in (plain, boxed):
        run.result.assert_outcomes(passed=1)
        run.result.stdout.fnmatch_lines(["*session-timeout: * exceeded*"])
    assert boxed.result.ret == plain.result.ret


def test_what_a_plugin_leaves_in_the_terminals_buffer_is_no_tests_output(runs: Runs):
    suite = {
        "conftest.py": """
            import sys
            import pytest

            @pytest.hookimpl(trylast=True)
            def pytest_runtest_logstart(nodeid):
                sys.__stdout__.write(f"<{nodeid}>")
        """,
        "test_it.py": """
            def test_one(): print("one")

            def test_two():
                print("two")
                assert 0
        """,
    }
    runs.ahead = False  # as a plugin keeps them that hears of reports
    plain, boxed = runs.same(suite, "-rA")
    assert boxed.of("test_two")["sections"] == plain.of("test_two")["sections"] == [["Captured stdout call", "two\n"]]


def test_what_raises_in_garbage_fails_the_run_where_warnings_are_errors(runs: Runs):
    suite = {
        "test_it.py": """
            import gc

            class Raises:
                def __init__(self):
                    self.itself = self

                def __del__(self):
                    raise ValueError("in a cycle")

            def test_old():
                kept = Raises()
                gc.collect(1)

            def test_young():
                Raises()

            def test_other(): pass
        """
    }
    directory = runs.write(suite, "suite")
    for boxed in (False, True):
        run = runs.run(directory, "-W", "error", boxed=boxed)
        run.result.assert_outcomes(passed=3)
        assert run.result.ret == 1
        assert run.result.stderr.str().count("ValueError: in a cycle") == 2


def test_the_time_that_a_box_takes_does_not_count_for_pytest_timeout(runs: Runs):
    suite = {
        "conftest.py": """
            import signal
            import pytest
            from pytest_nsbox.boxes import Boxes

            def running():
                return signal.getitimer(signal.ITIMER_REAL)[0] > 0

            def watched(self, spec, acquire=Boxes.acquire):
                assert not running()
                return acquire(self, spec)

            Boxes.acquire = watched

            @pytest.fixture(scope="module")
            def outer():
                assert running()
        """,
        "test_it.py": """
            import pytest
            from conftest import running

            @pytest.mark.timeout(60)
            def test_one(outer): assert running()

            def test_other(): assert not running()
        """,
    }
    run = runs.run(runs.write(suite, "suite"), "-p", "timeout")
    run.result.assert_outcomes(passed=2)
