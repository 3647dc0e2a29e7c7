"""Outer fixtures that hold threads, connections and processes: tests use them as in plain pytest."""

from __future__ import annotations

import re

import pytest

from tests.acceptance.comparing import ZOO, Runs

pytestmark = pytest.mark.needs("root", "overlay", "cgroup:memory")

RESOURCES = {"conftest.py": ZOO / "resources_conftest.py", "test_resources.py": ZOO / "resources.py"}


def test_threads_connections_and_servers_of_session_fixtures_work(runs: Runs):
    plain, boxed = runs.same(RESOURCES, "-W", "error")
    boxed.result.assert_outcomes(passed=len({report["nodeid"] for report in plain.reports()}))


def test_verbose_tells_which_fixture_lives_where_and_why(runs: Runs):
    boxed = runs.run(runs.write(RESOURCES, "boxed"), "-v", "-k", "1 or depends")
    boxed.result.stdout.fnmatch_lines_random(
        [
            "*tls: in the box of each test (opened a connection)",
            "*connection: in the box of each test (opened a connection)",
            "*depends_on_connection: in the box of each test (depends on a fixture that lives in the box)",
            "*worker: in the box of each test (started a thread)",
            "*server: in pytest's process (started a process, which tests reach but cannot wait for)",
        ]
    )


def test_where_fixtures_live_is_told_by_the_workers_of_xdist(runs: Runs):
    runs.autoload()
    boxed = runs.run(runs.write(RESOURCES, "boxed"), "-v", "-n2", "-k", "test_thread", "-p", "no:hypothesispytest")
    boxed.result.assert_outcomes(passed=2)
    assert boxed.result.outlines.count("worker: in the box of each test (started a thread)") == 1


def test_the_ini_places_fixtures(runs: Runs):
    suite = {
        "pytest.ini": "[pytest]\nsandbox_box_fixtures = boxed\nsandbox_host_fixtures = hosted\n",
        "test_places.py": """
            import os
            import threading
            import pytest

            HOST = os.getpid(), os.stat("/proc/self/ns/mnt").st_ino

            def here():
                return os.getpid(), os.stat("/proc/self/ns/mnt").st_ino

            @pytest.fixture(scope="session")
            def boxed():
                yield here()
                assert here()[1] != HOST[1]

            @pytest.fixture(scope="session")
            def hosted():
                stop = threading.Event()
                thread = threading.Thread(target=stop.wait)
                thread.start()
                yield here()
                stop.set()
                thread.join()
                assert here() == HOST

            @pytest.fixture(scope="session")
            def depends(boxed):
                return boxed, here()

            @pytest.mark.parametrize("number", [1, 2])
            def test_both(depends, boxed, hosted, number):
                assert boxed == here() != HOST
                assert depends == (here(), here())
                assert hosted == HOST
        """,
    }
    boxed = runs.run(runs.write(suite, "boxed"), "-v")
    boxed.result.assert_outcomes(passed=2)
    boxed.result.stdout.fnmatch_lines_random(
        [
            "boxed: in the box of each test (ini sandbox_box_fixtures)",
            "depends: in the box of each test (depends on a fixture that lives in the box)",
            "hosted: in pytest's process (started a thread; ini sandbox_host_fixtures)",
        ]
    )


def test_a_costly_fixture_that_moves_into_boxes_is_warned_of(runs: Runs):
    suite = {
        "test_costly.py": """
            import threading, time
            import pytest

            @pytest.fixture(scope="session")
            def costly():
                time.sleep(0.6)
                stop = threading.Event()
                thread = threading.Thread(target=stop.wait)
                thread.start()
                yield
                stop.set()
                thread.join()

            @pytest.fixture(scope="session")
            def dear(costly):
                time.sleep(0.1)

            def test_one(costly): pass
            def test_two(dear): pass
            def test_three(dear): pass
        """
    }
    # A suite that makes errors of warnings has the same outcome with boxes.
    boxed = runs.run(runs.write(suite, "boxed"), "-W", "error")
    boxed.result.assert_outcomes(passed=3, warnings=1)
    text = " ".join(boxed.result.outlines)
    assert re.search(
        r"SandboxWarning: fixture 'costly' started a thread, so every test sets it up in its own box, \d\.\d", text
    )
    assert (
        'one box for a module (marker key scope="module") sets up once, and ini sandbox_host_fixtures = costly keeps it'
    ) in text
    assert re.search(r"test_costly\.py:\d+: SandboxWarning", text)
    silent = runs.run(runs.write(suite, "boxed"), "-W", "ignore::pytest_nsbox.placement.SandboxWarning")
    silent.result.assert_outcomes(passed=3, warnings=0)
    grouped = runs.run(runs.write(suite, "boxed"), "--sandbox-set=scope=module", "--durations=0", "-vv")
    grouped.result.assert_outcomes(passed=3, warnings=1)
    assert sum("setup" in line and line > "0.5" for line in grouped.result.outlines if "s setup " in line) == 1


def test_polling_a_server_of_the_host_says_that_it_cannot_be_done(runs: Runs):
    suite = {
        "test_poll.py": """
            import subprocess, sys
            import pytest

            @pytest.fixture(scope="module")
            def server():
                with subprocess.Popen(["sleep", "100"]) as process:
                    yield process
                    process.kill()

            @pytest.mark.parametrize("ask", ["poll", "wait"])
            def test_asks(server, ask):
                getattr(server, ask)()

            def test_own_process(server):
                with subprocess.Popen(["true"]) as own:
                    assert own.wait() == 0
                assert subprocess.run(["false"]).returncode == 1
        """
    }
    boxed = runs.run(runs.write(suite, "boxed"))
    boxed.result.assert_outcomes(passed=1, failed=2)
    boxed.result.stdout.fnmatch_lines(
        ["E *NotInThisBox*: process * was started outside this test's box, by a fixture of a wider scope*"]
    )
