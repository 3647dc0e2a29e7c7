"""Rows: how tests and runs end, and what kinds of tests there are."""

from __future__ import annotations

from tests.matrix.fixtures import OUTER_LOG
from tests.matrix.row import Row, Section

ENDS = {
    "conftest.py": OUTER_LOG
    + """
    @pytest.fixture(scope="session")
    def outer():
        yield
        log("outer torn down")

    @pytest.fixture
    def inner(outer):
        yield
        log("inner torn down")
    """,
    "test_before.py": "def test_before(outer): pass\n",
    "test_ends.py": """
        import pytest

        def test_exit(inner):
            pytest.exit("enough", returncode=7)

        def test_interrupt(inner):
            raise KeyboardInterrupt

        def test_system_exit(inner):
            raise SystemExit(3)

        def test_stops(inner, request):
            request.session.shouldstop = "asked for"

        def test_fails_the_session(inner, request):
            request.session.shouldfail = "asked for"

        def test_generator_exit(inner):
            raise GeneratorExit

        @pytest.fixture
        def late(inner):
            yield
            pytest.exit("late")

        def test_exit_late(late): pass
    """,
    "test_last.py": "def test_last(inner): pass\n",
}


def _end(feature: str, gives: str, name: str) -> Row:
    return Row(feature, gives, ENDS, ["-k", f"before or last or test_{name}"])


BROKEN_HOOK = {
    "conftest.py": """
        import pytest

        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_makereport(item, call):
            report = yield
            if item.name == "test_two" and call.when == "call":
                raise RuntimeError("a broken hook")
            return report
    """,
    "test_it.py": "def test_one(): pass\ndef test_two(): pass\ndef test_three(): pass\n",
}

ENDINGS = Section(
    "How tests and runs end",
    [
        _end("`pytest.exit` in a test", "1 passed, 6 deselected", "exit and not late"),
        _end("`pytest.exit` in a tear-down", "2 passed, 6 deselected", "exit_late"),
        _end("`KeyboardInterrupt` in a test", "1 passed, 6 deselected", "interrupt"),
        _end("`SystemExit` in a test", "1 failed, 2 passed, 6 deselected", "system_exit"),
        _end("`session.shouldstop`", "2 passed, 6 deselected", "stops"),
        _end("`session.shouldfail`", "2 passed, 6 deselected", "fails_the_session"),
        _end("another `BaseException` in a test", "1 failed, 2 passed, 6 deselected", "generator_exit"),
        Row(
            "a hook that raises in pytest's own protocol (INTERNALERROR)",
            "1 passed",
            BROKEN_HOOK,
            reason="It ends the run with exit code 3, as without boxes; the traceback on the terminal has the frames of"
            " two processes.",
        ),
        Row(
            "skip and xfail in every form",
            "2 failed, 1 passed, 7 skipped, 6 xfailed, 1 xpassed, 1 error",
            {
                "conftest.py": """
                    import pytest

                    def pytest_collection_modifyitems(items):
                        for item in items:
                            if item.name == "test_marked_later":
                                item.add_marker(pytest.mark.skip(reason="by a hook"))
                """,
                "test_skips.py": """
                    import unittest
                    import pytest

                    @pytest.mark.skip
                    def test_bare(): pass

                    @pytest.mark.skipif("sys.platform == 'linux'", reason="by a string")
                    def test_condition(): pass

                    @pytest.mark.skipif(False, reason="never")
                    def test_not_skipped(): pass

                    def test_in_the_test(): pytest.skip("inside")
                    def test_import(): pytest.importorskip("no_such_module_at_all")
                    def test_marked_later(): pass
                    def test_raises_unittests(): raise unittest.SkipTest("unittest's")

                    @pytest.fixture
                    def skips(): pytest.skip("in a fixture")
                    def test_fixture(skips): pass

                    @pytest.mark.xfail
                    def test_xfails(): assert 0

                    @pytest.mark.xfail(reason="passes", strict=False)
                    def test_xpasses(): pass

                    @pytest.mark.xfail(strict=True)
                    def test_strict(): pass

                    @pytest.mark.xfail(raises=ZeroDivisionError)
                    def test_right_type(): 1 / 0

                    @pytest.mark.xfail(raises=(KeyError, IndexError))
                    def test_wrong_type(): 1 / 0

                    @pytest.mark.xfail(run=False)
                    def test_not_run(): raise SystemExit

                    @pytest.mark.xfail("True", reason="by a string")
                    def test_condition_xfail(): assert 0

                    def test_imperative(): pytest.xfail("inside")

                    def test_adds_a_mark(request):
                        request.applymarker(pytest.mark.xfail(reason="added"))
                        assert 0

                    @pytest.fixture
                    def breaks_late():
                        yield
                        raise RuntimeError

                    @pytest.mark.skipif("no_such_name")
                    def test_broken_condition(): pass
                """,
            },
            ["-rA"],
        ),
        Row(
            "the `subtests` fixture",
            "4 failed, 3 passed",
            {
                "test_sub.py": """
                    import pytest

                    def test_all_pass(subtests):
                        for number in range(3):
                            with subtests.test(number=number):
                                print("in subtest", number)

                    def test_some_fail(subtests):
                        for number in range(3):
                            with subtests.test("message", number=number):
                                assert number != 1
                        print("after")

                    def test_fails_besides(subtests):
                        with subtests.test("one"):
                            assert 0
                        assert 1 == 2

                    def test_skips(subtests):
                        with subtests.test():
                            pytest.skip("inside")

                    def test_last(): pass
                """
            },
            ["-rA"],
            at_least="9.0",
        ),
        Row(
            "unittest's `subTest`",
            "1 failed, 4 passed",
            {
                "test_sub.py": """
                    import unittest

                    class TestSub(unittest.TestCase):
                        def test_pass(self):
                            for number in range(3):
                                with self.subTest(number=number):
                                    print("in", number)

                        def test_fail(self):
                            for number in range(3):
                                with self.subTest("message", number=number):
                                    self.assertNotEqual(number, 1)
                            print("after")

                        def test_skip(self):
                            with self.subTest("one"):
                                self.skipTest("inside")

                        def test_last(self): pass
                """
            },
            ["-rA"],
            at_least="9.0",
        ),
        Row(
            "a test that kills its own process",
            "",
            {
                "test_dies.py": """
                    import os, signal

                    def test_before(): pass
                    def test_dies(): os.kill(os.getpid(), signal.SIGKILL)
                    def test_after(): pass
                """
            },
            reason="Without a box it ends pytest. In a box that test fails, the report says how its process ended, and"
            " the run goes on.",
            differs=("outcomes", "counts", "exit code", "report"),
        ),
    ],
)

KINDS = Section(
    "Kinds of tests",
    [
        Row(
            "doctests of modules, text files, with options and fixtures",
            "3 failed, 3 passed, 1 skipped",
            {
                "pytest.ini": "[pytest]\ndoctest_optionflags = ELLIPSIS NORMALIZE_WHITESPACE\n",
                "conftest.py": """
                    import pytest

                    @pytest.fixture(autouse=True)
                    def names(doctest_namespace, tmp_path):
                        doctest_namespace["directory"] = tmp_path
                """,
                "module.py": '''
                    def works():
                        """
                        >>> directory.is_dir()
                        True
                        >>> print(list(range(20)))
                        [0, 1, ..., 18, 19]
                        """

                    def fails():
                        """
                        >>> 1 + 1
                        3
                        >>> 2 + 2
                        5
                        """

                    def raises():
                        """
                        >>> 1 / 0
                        """

                    def skipped():
                        """
                        >>> 1 / 0  # doctest: +SKIP
                        """
                ''',
                "test_text.txt": """
                    >>> x = 3
                    >>> x
                    3
                """,
                "test_more.txt": """
                    >>> x = 3
                    >>> x
                    4
                """,
                "test_plain.py": "def test_plain(): pass\n",
            },
            ["--doctest-modules", "--doctest-continue-on-failure", "-rA"],
        ),
        Row(
            "pytester inside a box, in process and as a subprocess",
            "3 passed",
            {
                "conftest.py": 'pytest_plugins = ["pytester"]\n',
                "test_plugin.py": """
                    def test_in_process(pytester):
                        pytester.makepyfile("def test_one(): pass\\ndef test_two(): assert 0")
                        result = pytester.runpytest_inprocess("-p", "no:nsbox")
                        result.assert_outcomes(passed=1, failed=1)

                    def test_subprocess(pytester):
                        pytester.makepyfile("def test_one(): pass")
                        pytester.runpytest_subprocess("-p", "no:nsbox").assert_outcomes(passed=1)

                    def test_items(pytester):
                        items = pytester.getitems("def test_one(): pass")
                        assert [item.name for item in items] == ["test_one"]
                """,
            },
        ),
        Row(
            "hooks of a conftest round every phase, `item.funcargs`, the makereport recipe of pytest's documentation",
            "1 failed, 1 passed, 1 error",
            {
                "conftest.py": OUTER_LOG
                + """
    phases = pytest.StashKey()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(item, call):
        report = yield
        item.stash.setdefault(phases, {})[report.when] = report
        log("report", item.name, report.when, report.outcome, sorted(item.funcargs))
        report.sections.append(("by a hook", report.when))
        return report

    @pytest.fixture
    def something(request):
        yield
        log("in tear-down", {when: report.outcome for when, report in request.node.stash[phases].items()})

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(item, nextitem):
        log("protocol", item.name, nextitem and nextitem.name)
        return (yield)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_setup(item):
        log("setup begins", item.name)
        yield
        log("setup ends", item.name)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(item):
        log("call begins", item.name)
        try:
            return (yield)
        finally:
            log("call ends", item.name)

    def pytest_runtest_teardown(item, nextitem):
        log("teardown", item.name)

    def pytest_exception_interact(node, call, report):
        log("exception", node.name, call.when)

    def pytest_fixture_setup(fixturedef, request):
        log("fixture", fixturedef.argname)

    def pytest_assertrepr_compare(op, left, right):
        return [f"{left} is not {right}, says a hook"]

    def pytest_report_teststatus(report, config):
        if report.when == "call" and report.passed:
            return "passed", "P", "PASSED, says a hook"

    def pytest_terminal_summary(terminalreporter):
        terminalreporter.section("a hook's")
        terminalreporter.write_line(f"reports: {sorted(terminalreporter.stats)}")
                """,
                "test_hooks.py": """
                    def test_passes(something): pass
                    def test_fails(something, tmp_path): assert "a" == "b"
                    def test_missing(missing): pass
                """,
            },
            ["-v"],
        ),
        Row(
            "items that are no Python functions, `pytest_generate_tests`",
            "1 failed, 4 passed",
            {
                "conftest.py": """
                    import pytest

                    def pytest_collect_file(parent, file_path):
                        if file_path.suffix == ".sums":
                            return SumsFile.from_parent(parent, path=file_path)

                    class SumsFile(pytest.File):
                        def collect(self):
                            for number, line in enumerate(self.path.read_text().split()):
                                yield SumItem.from_parent(self, name=str(number), line=line)

                    class SumItem(pytest.Item):
                        def __init__(self, *, line, **kwargs):
                            super().__init__(**kwargs)
                            self.line = line

                        def runtest(self):
                            print("checks", self.line)
                            left, right = self.line.split("=")
                            if eval(left) != int(right):
                                raise SumError(self.line)

                        def repr_failure(self, excinfo):
                            return f"wrong sum: {excinfo.value}"

                        def reportinfo(self):
                            return self.path, 0, f"sum: {self.name}"

                    class SumError(Exception):
                        pass

                    def pytest_generate_tests(metafunc):
                        if "generated" in metafunc.fixturenames:
                            metafunc.parametrize("generated", [1, 2])
                """,
                "check.sums": "1+1=2\n2+2=5\n",
                "test_generated.py": "def test_generated(generated): assert generated\ndef test_plain(): pass\n",
            },
            ["-v"],
        ),
        Row(
            "subprocesses, multiprocessing (fork, spawn), threads, executors, signals, sockets, sqlite, `asyncio.run`",
            "11 passed",
            {
                "test_machinery.py": """
                    import asyncio
                    import concurrent.futures
                    import multiprocessing
                    import os
                    import signal
                    import socket
                    import sqlite3
                    import subprocess
                    import sys
                    import threading
                    import time
                    import pytest

                    def double(number):
                        return number * 2

                    def test_subprocess():
                        done = subprocess.run([sys.executable, "-c", "print(5)"], capture_output=True, text=True)
                        assert done.stdout == "5\\n"

                    @pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
                    def test_multiprocessing(method):
                        with multiprocessing.get_context(method).Pool(2) as pool:
                            assert pool.map(double, [1, 2]) == [2, 4]

                    def test_threads():
                        with concurrent.futures.ThreadPoolExecutor(4) as pool:
                            assert list(pool.map(double, range(5))) == [0, 2, 4, 6, 8]

                    def test_processes():
                        with concurrent.futures.ProcessPoolExecutor(1) as pool:
                            assert pool.submit(double, 4).result() == 8

                    def test_signals():
                        seen = []
                        signal.signal(signal.SIGALRM, lambda *_: seen.append(1))
                        signal.setitimer(signal.ITIMER_REAL, 0.01)
                        time.sleep(0.05)
                        os.kill(os.getpid(), signal.SIGALRM)
                        assert seen == [1, 1]

                    def test_sockets():
                        with socket.create_server(("127.0.0.1", 0)) as server:
                            def serve():
                                connection, _ = server.accept()
                                with connection:
                                    connection.sendall(connection.recv(10).upper())
                            thread = threading.Thread(target=serve)
                            thread.start()
                            with socket.create_connection(server.getsockname()) as client:
                                client.sendall(b"hello")
                                assert client.recv(10) == b"HELLO"
                            thread.join()

                    def test_unix_sockets(tmp_path):
                        with socket.socket(socket.AF_UNIX) as server:
                            server.bind(str(tmp_path / "socket"))
                            server.listen()
                            with socket.socket(socket.AF_UNIX) as client:
                                client.connect(str(tmp_path / "socket"))

                    def test_sqlite(tmp_path):
                        with sqlite3.connect(tmp_path / "db") as db:
                            db.execute("create table t (x)")
                            db.execute("insert into t values (1)")
                            assert db.execute("select x from t").fetchall() == [(1,)]

                    def test_asyncio():
                        async def main():
                            process = await asyncio.create_subprocess_exec("true")
                            return await process.wait()
                        assert asyncio.run(main()) == 0
                """
            },
        ),
        Row(
            "a thousand parametrised tests",
            "1 failed, 999 passed",
            {
                "test_many.py": """
                    import pytest

                    @pytest.mark.parametrize("number", range(1000))
                    def test_many(number):
                        assert number != 500
                """
            },
        ),
        Row(
            "`pytest.main()` in a program, with plugin objects",
            "1 failed, 1 passed",
            {
                "pytest_extra.py": """
                    import os

                    class Plugin:
                        def pytest_runtest_logreport(self, report):
                            print("heard", report.when, report.outcome)

                    def pytest_configure(config):
                        config.pluginmanager.register(Plugin())
                """,
                "test_it.py": "def test_one(): pass\ndef test_two(): assert 0\n",
            },
            ["-p", "pytest_extra"],
        ),
    ],
)
