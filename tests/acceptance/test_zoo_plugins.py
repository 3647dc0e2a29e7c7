"""Other people's plugins give with boxes what they give without."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.acceptance.comparing import ZOO, Recorded, Runs, assert_same, comparable, difference, spread

pytestmark = pytest.mark.needs("root", "overlay", "cgroup:memory")


PHASES = ("setup", "call", "teardown")
WITH_SUBTESTS = pytest.version_tuple >= (9,)


def load(*plugins: str) -> list[str]:
    return [word for plugin in plugins for word in ("-p", plugin)]


def test_rerunfailures_runs_each_attempt_in_a_box_of_its_own(runs: Runs, monkeypatch: pytest.MonkeyPatch):
    suite = {
        "test_flaky.py": """
            import os
            import pytest

            LOG = os.open(os.environ["NSBOX_LOG"], os.O_RDWR | os.O_APPEND)

            def attempt(name):
                if os.environ.get("IN_BOXES"):
                    open("/etc/made-by-an-attempt", "x").close()
                os.write(LOG, f"{name} {os.getpid()}\\n".encode())
                return os.pread(LOG, 10000, 0).decode().count(f"{name} ")

            @pytest.fixture
            def inner():
                yield
                os.write(LOG, b"torn down\\n")

            @pytest.mark.flaky(reruns=3)
            def test_third_time(inner):
                assert attempt("third") == 3

            @pytest.mark.flaky(reruns=2)
            def test_never(inner):
                print("output of attempt", attempt("never"))
                assert 0

            @pytest.mark.flaky(reruns=1)
            def test_dies():
                if attempt("dies") == 1:
                    print("told before the end")
                    os._exit(3)

            def test_last():
                pass
        """
    }
    if WITH_SUBTESTS:
        suite["test_flaky.py"] += """
            @pytest.mark.flaky(reruns=1)
            def test_subtests(subtests):
                number = attempt("subtests")
                with subtests.test():
                    assert number == 2
        """
    args = [*load("rerunfailures"), "-rAR"]
    plain = runs.run(runs.write(suite, "plain"), *args, "--deselect", "test_flaky.py::test_dies", boxed=False)
    monkeypatch.setenv("IN_BOXES", "1")  # a file that one attempt made would stop the next
    boxed = runs.run(runs.write(suite, "boxed"), *args, "--deselect", "test_flaky.py::test_dies")
    assert_same(plain, boxed)
    assert len(boxed.log) == 12 + 2 * WITH_SUBTESTS
    assert boxed.log.count("torn down") == 6
    boxed = runs.run(boxed.path, *args, "-k", "dies or last")
    boxed.result.assert_outcomes(passed=2)
    boxed.result.stdout.fnmatch_lines(["*2 passed*1 rerun in*"])
    rerun = boxed.of("test_dies", "call") if len(boxed.reports("test_dies")) == 3 else boxed.reports("test_dies")[1]
    assert rerun["outcome"] == "rerun"
    assert "exited with status 3 before the test ended" in rerun["longrepr"]


def test_asyncio_tests_and_loops_of_every_scope(runs: Runs):
    suite = {
        "pytest.ini": "[pytest]\nasyncio_default_fixture_loop_scope = function\n",
        "test_async.py": """
            import asyncio
            import pytest
            import pytest_asyncio

            @pytest_asyncio.fixture
            async def value():
                await asyncio.sleep(0)
                yield 5
                await asyncio.sleep(0)

            @pytest_asyncio.fixture(scope="module", loop_scope="module")
            async def of_module():
                queue = asyncio.Queue()
                await queue.put(1)
                yield queue

            @pytest.mark.asyncio
            async def test_awaits(value):
                await asyncio.sleep(0.01)
                assert value == 5

            @pytest.mark.asyncio
            async def test_fails(value):
                await asyncio.sleep(0)
                assert value == 6

            @pytest.mark.asyncio(loop_scope="module")
            @pytest.mark.parametrize("number", [1, 2])
            async def test_module_loop(of_module, number):
                assert of_module.qsize() == 1

            @pytest.mark.asyncio
            async def test_subprocess():
                process = await asyncio.create_subprocess_exec("echo", "out", stdout=asyncio.subprocess.PIPE)
                assert (await process.communicate())[0] == b"out\\n"
                assert process.returncode == 0

            @pytest.mark.asyncio
            async def test_server():
                async def serve(reader, writer):
                    writer.write((await reader.readline()).upper())
                    writer.close()

                server = await asyncio.start_server(serve, "127.0.0.1", 0)
                async with server:
                    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
                    writer.write(b"hello\\n")
                    assert await reader.readline() == b"HELLO\\n"
                    writer.close()

            def test_plain():
                assert asyncio.run(asyncio.sleep(0, 3)) == 3
        """,
    }
    runs.same(suite, *load("asyncio"), "-v")


def test_mock_is_undone_after_each_test(runs: Runs):
    suite = {
        "test_mock.py": """
            import os

            def test_patches(mocker):
                mocker.patch("os.getpid", return_value=5)
                spy = mocker.spy(os.path, "exists")
                os.path.exists("/")
                spy.assert_called_once_with("/")
                stub = mocker.stub()
                stub(1)
                stub.assert_called_once_with(2)

            def test_undone():
                assert os.getpid() != 5
        """
    }
    runs.same(suite, *load("pytest_mock"))


@pytest.mark.parametrize("method", ["signal", "thread"])
def test_timeouts_of_pytest_timeout_end_the_test_and_not_the_run(runs: Runs, method: str):
    suite = {
        "test_timeouts.py": """
            import time
            import pytest

            @pytest.mark.timeout(1.5)
            def test_sleeps():
                print("before sleeping")
                time.sleep(20)

            @pytest.mark.timeout(0.5)
            def test_cannot_be_interrupted():
                import signal
                signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
                time.sleep(20)

            @pytest.mark.timeout(20)
            def test_quick():
                pass
        """
    }
    directory = runs.write(suite, "boxed")
    boxed = runs.run(directory, *load("timeout"), "-o", f"timeout_method={method}", timeout=30)
    boxed.result.assert_outcomes(passed=1, failed=2)
    # With its thread, pytest-timeout prints by itself what was captured, and leaves nothing for the report.
    told = boxed.of("test_sleeps")["sections"] if method == "signal" else boxed.result.outlines
    assert "before sleeping" in str(told)
    assert "imeout" in boxed.of("test_sleeps")["longrepr"]
    assert all(boxed.of(name)["duration"] < 10 for name in ("test_sleeps", "test_cannot_be_interrupted"))


COVERED = {
    "covered.py": """
        import sys

        def by_a_test(value):
            if value:
                return "yes"
            return "no"

        def by_a_session_fixture():
            return "session"

        def by_a_test_that_dies():
            return "dies"

        def by_a_child():
            return "child"

        def by_another_process(value):
            if value:
                return "started"
            return "forked"

        def never():
            return "never"

        if __name__ == "__main__":
            by_another_process(1)
    """,
    "test_covered.py": """
        import multiprocessing
        import os
        import subprocess
        import sys
        import threading
        import pytest
        import covered

        @pytest.fixture(scope="session")
        def session():
            return covered.by_a_session_fixture()

        @pytest.fixture
        def inner():
            yield covered.by_a_test(1)
            import late

        @pytest.mark.parametrize("value", [0, 1])
        def test_one(session, value):
            assert covered.by_a_test(value) == ["no", "yes"][value]

        def test_two(inner):
            assert inner == "yes"

        def test_thread():
            thread = threading.Thread(target=covered.by_a_child)
            thread.start()
            thread.join()

        def test_changes_directory(tmp_path, monkeypatch):
            monkeypatch.chdir(tmp_path)
            import other
            assert other.VALUE == 1

        def test_processes(tmp_path, monkeypatch):
            script = os.path.abspath("covered.py")
            monkeypatch.chdir(tmp_path)
            subprocess.run([sys.executable, script], check=True)
            with multiprocessing.get_context("fork").Pool(1) as pool:
                assert pool.map(covered.by_another_process, [0]) == ["forked"]
                pool.close()
                pool.join()
    """,
    "late.py": "VALUE = 1\nif VALUE:\n    VALUE += 1\n",
    "other.py": "VALUE = 1\n\ndef unused():\n    return VALUE\n",
    ".coveragerc": """
        [run]
        branch = True
        omit = recorder.py
        patch = subprocess
        concurrency = multiprocessing, thread
        [report]
        show_missing = True
    """,
}


def coverage_json(run: Recorded) -> dict[str, object]:
    found = json.loads((run.path / "coverage.json").read_text(encoding="utf-8"))
    return {"files": found["files"], "totals": found["totals"]}


@pytest.mark.parametrize("distributed", [False, True])
def test_coverage_is_the_plain_one(runs: Runs, distributed: bool):
    runs.autoload()
    args = ["--cov=.", "--cov-branch", "--cov-report=json", "--cov-report=term-missing", "--cov-context=test"]
    args += ["-p", "no:hypothesispytest", *(["-n2"] if distributed else [])]
    plain, boxed = runs.both(COVERED, *args)
    boxed.result.assert_outcomes(passed=6)
    assert coverage_json(boxed) == coverage_json(plain)
    table = [[line for line in run.terminal() if re.match(r"\w+\.py +\d|TOTAL", line)] for run in (plain, boxed)]
    assert table[0] == table[1]
    assert contexts(boxed.path) == contexts(plain.path)
    assert sorted(path.name for path in boxed.path.glob(".coverage*")) == [".coverage", ".coveragerc"]


def contexts(directory: Path) -> dict[str, object]:
    """Lines by context of each measured file, as pytest-cov recorded them."""
    from coverage import CoverageData

    data = CoverageData(str(directory / ".coverage"))
    data.read()
    return {
        Path(file).name: {line: sorted(names) for line, names in data.contexts_by_lineno(file).items()}
        for file in sorted(data.measured_files())
    }


def test_coverage_of_100_percent_with_fail_under_is_kept(runs: Runs):
    suite = {
        "whole.py": "def f(x):\n    if x:\n        return 1\n    return 2\n",
        "test_whole.py": """
            import whole

            def test_one():
                assert whole.f(0) == 2

            def test_two():
                assert whole.f(1) == 1
        """,
    }
    boxed = runs.run(
        runs.write(suite, "boxed"), *load("pytest_cov"), "--cov=whole", "--cov-branch", "--cov-fail-under=100"
    )
    assert boxed.result.ret == 0
    boxed.result.stdout.fnmatch_lines(["TOTAL * 100%"])


def test_xdist_gives_the_plain_answers(runs: Runs):
    runs.autoload()
    suite = {"test_outcomes.py": ZOO / "outcomes.py", "test_cases.py": ZOO / "cases.py"}
    args = [
        "-n2",
        "-p",
        "no:hypothesispytest",
        "-k",
        "error or warn or skip or xfail or xpass or prop or subtest or TestCases",
    ]
    plain, boxed = runs.both(suite, *args)
    answers = []
    for run in (plain, boxed):
        kept = [comparable(event) for event in run.events if event["event"] == "report"]
        for event in kept:
            event["others"] = {name: value for name, value in event["others"].items() if "report_type" not in name}
        kept.sort(key=lambda event: (event["nodeid"], PHASES.index(event["when"])))
        answers.append(spread(kept))
    found = difference("reports", *answers)
    assert not found, "\n".join(found)
    assert boxed.result.ret == plain.result.ret
    assert boxed.result.parseoutcomes() == plain.result.parseoutcomes()
    assert "sandbox.wall_s" in boxed.properties("test_outcomes.py::test_xpasses")


def test_xdist_workers_share_the_base_temp(runs: Runs):
    runs.autoload()
    suite = {
        "conftest.py": """
            import fcntl
            import pytest

            @pytest.fixture(scope="session")
            def once(tmp_path_factory, worker_id):
                shared = tmp_path_factory.getbasetemp().parent
                with open(shared / "lock", "w") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX)
                    with open(shared / "count", "a") as count:
                        count.write(worker_id + "\\n")
                return shared
        """,
        "test_shared.py": """
            import fcntl
            import pytest

            @pytest.mark.parametrize("number", range(4))
            def test_shares(once, number):
                with open(once / "lock", "w") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX)
                    with open(once / "tests", "a") as tests:
                        tests.write(f"{number}\\n")
                assert len((once / "count").read_text().split()) <= 2
                assert str(number) in (once / "tests").read_text().split()
        """,
    }
    boxed = runs.run(runs.write(suite, "boxed"), "-n2", "-p", "no:hypothesispytest")
    boxed.result.assert_outcomes(passed=4)


def test_a_worker_of_xdist_that_is_killed_leaves_no_box(runs: Runs):
    runs.autoload()
    suite = {
        "test_dies.py": """
            import os
            import pytest

            @pytest.fixture(scope="module")
            def kills_the_worker():
                os._exit(9)

            def test_dies(kills_the_worker): pass
            def test_passes(): pass
        """
    }
    boxed = runs.run(runs.write(suite, "boxed"), "-n1", "-p", "no:hypothesispytest")
    boxed.result.assert_outcomes(passed=1, failed=1)
    boxed.result.stdout.fnmatch_lines(["*worker 'gw0' crashed while running 'test_dies.py::test_dies'*"])


def test_hypothesis_finds_and_shows_the_same(runs: Runs):
    suite = {
        "test_properties.py": """
            from hypothesis import given, note, settings, seed, target, event, strategies as st
            import pytest

            @seed(1)
            @settings(database=None)
            @given(st.integers())
            def test_passes(n):
                event("even" if n % 2 == 0 else "odd")
                assert n == n

            @seed(1)
            @settings(database=None)
            @given(st.lists(st.integers()))
            def test_fails(numbers):
                note("noted")
                assert sum(numbers) < 100

            @pytest.fixture
            def value():
                return 3

            @seed(1)
            @settings(database=None)
            @given(n=st.integers(0, 5))
            def test_with_a_fixture(value, n):
                assert value != n
        """
    }
    args = [*load("_hypothesis_pytestplugin"), "-v", "-p", "no:cacheprovider"]
    plain, boxed = runs.both(suite, *args)
    for event in (*plain.events, *boxed.events):
        if "_hypothesis_stats" in event.get("others", {}):
            event["others"]["_hypothesis_stats"] = "figures"
    assert_same(plain, boxed)
    shown = runs.run(boxed.path, *args, "--hypothesis-show-statistics", "-k", "passes")
    shown.result.stdout.fnmatch_lines(["*Hypothesis Statistics*", "*test_properties.py::test_passes:", "*100 passing*"])


def test_hypothesis_tries_first_what_failed_in_the_run_before(runs: Runs):
    suite = {
        "test_numbers.py": """
            import os
            from hypothesis import given, strategies as st

            LOG = os.open(os.environ["NSBOX_LOG"], os.O_WRONLY | os.O_APPEND)

            @given(st.integers())
            def test_small(n):
                os.write(LOG, f"{n}\\n".encode())
                assert n < 1000
        """
    }
    args = [*load("_hypothesis_pytestplugin"), "-p", "no:cacheprovider"]
    boxed = runs.run(runs.write(suite, "boxed"), *args)
    again = runs.run(boxed.path, *args)
    assert boxed.log[0] == "0"
    assert again.log[0] == "1000"
