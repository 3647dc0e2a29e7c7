"""Rows: capture, logging, warnings, and the fixtures that come with pytest."""

from __future__ import annotations

from tests.matrix.row import Row, Section

NOISE = {
    "test_noise.py": """
        import logging
        import os
        import subprocess
        import sys
        import pytest

        @pytest.fixture(scope="module")
        def outer():
            print("outer set up")
            yield
            print("outer torn down")

        @pytest.fixture
        def inner(outer):
            print("set up")
            print("set up, to stderr", file=sys.stderr)
            yield
            print("torn down")

        def test_prints(inner):
            print("printed")
            sys.stderr.write("to stderr\\n")

        def test_prints_and_fails(inner):
            print("printed before")
            os.write(1, b"written to the descriptor\\n")
            sys.stdout.flush()
            subprocess.run(["echo", "of a child"])
            subprocess.run("echo of a child >&2", shell=True)
            logging.getLogger("x").warning("logged")
            assert 0

        def test_binary_and_unicode():
            sys.stdout.write("ünïcödé \\u2713\\n")
            sys.stdout.flush()
            sys.stdout.buffer.write(b"bytes\\n")
            assert 0

        def test_much():
            print("\\n".join(["x" * 70] * 5000))
            assert 0

        def test_reads():
            with pytest.raises(OSError):
                input()
    """
}
BUFFERED = (
    "Where the run writes into a pipe, Python keeps what is printed past the capture in a buffer, and plain pytest"
    " shows it after what programs and `os.write` print meanwhile. In boxes it is shown by the end of each phase. On a"
    " terminal, and with `PYTHONUNBUFFERED`, both show everything at once."
)
UNBUFFERED = {"PYTHONUNBUFFERED": "1"}

CAPTURE = Section(
    "Capture, logging, warnings",
    [
        Row("`--capture=fd`", "3 failed, 2 passed", NOISE, ["-rA"]),
        Row("`--capture=sys`", "3 failed, 2 passed", NOISE, ["--capture=sys", "-rP"]),
        Row("`-s`", "4 failed, 1 passed", NOISE, ["-s"], reason=BUFFERED),
        Row("`-s -v`", "4 failed, 1 passed", NOISE, ["-s", "-v"], reason=BUFFERED),
        Row("`--capture=tee-sys`", "4 failed, 1 passed", NOISE, ["--capture=tee-sys"], reason=BUFFERED),
        Row("`-s -v`, unbuffered", "4 failed, 1 passed", NOISE, ["-s", "-v"], env=UNBUFFERED),
        Row("`--capture=tee-sys`, unbuffered", "4 failed, 1 passed", NOISE, ["--capture=tee-sys"], env=UNBUFFERED),
        Row("`--show-capture=no`", "3 failed, 2 passed", NOISE, ["--show-capture=no"]),
        Row("`--show-capture=stderr`", "3 failed, 2 passed", NOISE, ["--show-capture=stderr"]),
        Row(
            "`capsys`, `capfd`, `capsysbinary`, `capfdbinary`, `.disabled()`",
            "2 failed, 5 passed",
            {
                "test_fixtures.py": """
                    import os
                    import subprocess
                    import pytest

                    def test_capsys(capsys):
                        print("one")
                        assert capsys.readouterr().out == "one\\n"
                        print("two")
                        assert capsys.readouterr().out == "two\\n"

                    def test_capfd(capfd):
                        subprocess.run(["echo", "child"])
                        os.write(2, b"err")
                        assert capfd.readouterr() == ("child\\n", "err")

                    def test_binary(capsysbinary):
                        print("x")
                        assert capsysbinary.readouterr().out == b"x\\n"

                    def test_binary_fd(capfdbinary):
                        os.write(1, b"\\xff")
                        assert capfdbinary.readouterr().out == b"\\xff"

                    def test_disabled(capsys):
                        print("hidden")
                        with capsys.disabled():
                            print("to the terminal")
                        print("hidden again")

                    def test_left_over(capsys):
                        print("left over")
                        assert 0

                    @pytest.fixture
                    def prints(capfd):
                        print("in set-up")
                        yield
                        print("in tear-down", capfd.readouterr())

                    def test_in_fixture(prints):
                        assert 0
                """
            },
            ["-rA"],
        ),
        Row(
            "`caplog`, `--log-level`, handlers, `at_level`",
            "1 failed, 3 passed",
            {
                "test_logs.py": """
                    import logging
                    import pytest

                    log = logging.getLogger("suite.part")

                    def test_records(caplog):
                        log.info("info %s", 1)
                        assert caplog.record_tuples == [("suite.part", logging.INFO, "info 1")]
                        with caplog.at_level(logging.ERROR):
                            log.warning("hidden")
                        assert caplog.messages == ["info 1"]
                        caplog.clear()
                        assert not caplog.text

                    def test_level_is_restored(caplog):
                        caplog.set_level("DEBUG", logger="suite")
                        log.debug("debug")
                        assert "debug" in caplog.text

                    @pytest.fixture
                    def logs(caplog):
                        log.warning("in set-up")
                        yield
                        assert [record.message for record in caplog.get_records("setup")] == ["in set-up"]
                        log.warning("in tear-down")

                    def test_phases(logs, caplog):
                        log.error("in the call")
                        assert 0

                    def test_exception(caplog):
                        try:
                            1 / 0
                        except ZeroDivisionError:
                            log.exception("caught")
                        assert caplog.records[0].exc_info
                """
            },
            ["--log-level=INFO", "-rA"],
        ),
        Row(
            "`log_cli`, `--log-cli-level`, `--log-format`",
            "1 failed, 3 passed",
            (
                logs := {
                    "conftest.py": """
                        import logging
                        import pytest

                        log = logging.getLogger("suite")

                        @pytest.fixture(scope="session")
                        def outer():
                            log.info("session begins")
                            yield
                            log.info("session ends")

                        @pytest.fixture
                        def inner(outer):
                            log.info("set up")
                            yield
                            log.info("torn down")

                        def pytest_sessionstart():
                            log.warning("session starts")

                        def pytest_runtest_logreport(report):
                            log.debug("report of %s", report.when)
                    """,
                    "test_logs.py": """
                        import logging

                        def test_one(inner):
                            logging.info("one")

                        def test_two(inner):
                            logging.error("two")
                            assert 0

                        def test_silent(): pass
                        def test_last(outer): logging.info("last")
                    """,
                }
            ),
            ["-o", "log_cli=true", "--log-cli-level=INFO", "--log-format=%(levelname)s %(message)s"],
        ),
        Row("`log_cli` with `-v`", "1 failed, 3 passed", logs, ["-o", "log_cli=true", "--log-cli-level=DEBUG", "-v"]),
        Row(
            "`--log-file`, `--log-file-level`, `--log-file-format`",
            "1 failed, 3 passed",
            logs,
            ["--log-file=run.log", "--log-file-level=INFO", "--log-file-format=%(levelname)s %(message)s"],
            produces=["run.log"],
        ),
        Row(
            "`recwarn`, `pytest.warns`, `filterwarnings`, the warnings summary",
            "1 failed, 9 passed, 6 warnings",
            {
                "pytest.ini": "[pytest]\nfilterwarnings =\n    ignore:ignored by ini\n",
                "test_warnings.py": """
                    import warnings
                    import pytest

                    class OwnWarning(UserWarning):
                        def __init__(self, number, text):
                            super().__init__(f"{number}: {text}")
                            self.number = number

                    def warn():
                        warnings.warn("the same place")

                    def test_recwarn(recwarn):
                        warnings.warn("caught")
                        assert str(recwarn.pop().message) == "caught"

                    def test_warns():
                        with pytest.warns(UserWarning, match="ex.ected"):
                            warnings.warn("expected")
                        with pytest.deprecated_call():
                            warnings.warn("old", DeprecationWarning)

                    def test_no_warning():
                        with pytest.warns(UserWarning):
                            pass

                    def test_same_place_1(): warn()
                    def test_same_place_2(): warn()
                    def test_own(): warnings.warn(OwnWarning(5, "own"))
                    def test_deprecated(): warnings.warn("old", DeprecationWarning)
                    def test_ignored(): warnings.warn("ignored by ini")

                    @pytest.mark.filterwarnings("ignore:by mark")
                    def test_ignored_by_mark(): warnings.warn("by mark")

                    @pytest.fixture(scope="module")
                    def warns_early():
                        warnings.warn("of a module fixture")
                        yield
                        warnings.warn("of a module fixture, late")

                    def test_fixture(warns_early): pass
                """,
            },
        ),
        Row(
            "`-W error`, `-W ignore`, `filterwarnings = error`",
            "4 failed, 2 passed",
            {
                "test_warnings.py": """
                    import warnings
                    import pytest

                    def test_warns(): warnings.warn("x")
                    def test_ignored(): warnings.warn("old", DeprecationWarning)

                    @pytest.mark.filterwarnings("default")
                    def test_allowed_by_mark(): pass

                    def test_resource(tmp_path):
                        open(tmp_path / "file", "w")
                        import gc
                        gc.collect()

                    def test_unraisable():
                        class Breaks:
                            def __del__(self):
                                raise ValueError("in __del__")
                        Breaks()

                    def test_thread():
                        import threading
                        thread = threading.Thread(target=lambda: 1 / 0)
                        thread.start()
                        thread.join()
                """
            },
            ["-W", "error", "-W", "ignore::DeprecationWarning"],
        ),
        Row(
            "unraisable exceptions, exceptions of threads, `ResourceWarning`",
            "3 passed, 3 warnings",
            {
                "test_late.py": """
                    import gc
                    import threading

                    def test_unraisable():
                        class Breaks:
                            def __del__(self):
                                raise ValueError("in __del__")
                        Breaks()

                    def test_thread():
                        thread = threading.Thread(target=lambda: 1 / 0, name="breaks")
                        thread.start()
                        thread.join()

                    def test_resource(tmp_path):
                        open(tmp_path / "file", "w")
                        gc.collect()
                """
            },
            ["-W", "default"],
        ),
        Row(
            "`monkeypatch`",
            "1 failed, 3 passed",
            {
                "conftest.py": """
                    import pytest

                    @pytest.fixture(scope="module")
                    def patched():
                        with pytest.MonkeyPatch.context() as patch:
                            patch.setenv("OF_A_MODULE", "1")
                            yield patch
                """,
                "test_patches.py": """
                    import os
                    import sys

                    HERE = os.getcwd()

                    def test_patches(monkeypatch, tmp_path):
                        monkeypatch.setenv("X_OF_TEST", "1")
                        monkeypatch.setattr(os, "getpid", lambda: 5)
                        monkeypatch.setattr("os.path.sep", "|")
                        monkeypatch.setitem(sys.modules, "no_module", os)
                        monkeypatch.chdir(tmp_path)
                        monkeypatch.syspath_prepend(tmp_path)
                        import no_module
                        assert (no_module.getpid(), os.path.sep, os.getcwd()) == (5, "|", str(tmp_path))

                    def test_undone():
                        assert "X_OF_TEST" not in os.environ
                        assert (os.path.sep, os.getcwd()) == ("/", HERE)
                        assert "no_module" not in sys.modules

                    def test_of_a_module(patched):
                        assert os.environ["OF_A_MODULE"] == "1"

                    def test_fails_while_patched(monkeypatch):
                        monkeypatch.delattr("os.path.exists")
                        assert 0
                """,
            },
        ),
        Row(
            "`record_property`, `record_testsuite_property`, `record_xml_attribute`",
            "1 failed, 2 passed, 1 warning",
            {
                "test_records.py": """
                    import pytest

                    @pytest.fixture(scope="session")
                    def of_session(record_testsuite_property):
                        record_testsuite_property("of session", "value")

                    def test_records(record_property, of_session):
                        record_property("number", 5)
                        record_property("list", [1, 2])

                    def test_attribute(record_xml_attribute, record_testsuite_property):
                        record_xml_attribute("assertions", 3)
                        record_testsuite_property("of a test", 7)

                    def test_fails(record_property, request):
                        request.node.user_properties.append(("by hand", "x"))
                        record_property("key", "<&>")
                        assert 0
                """
            },
            ["--junitxml=junit.xml", "-o", "junit_family=xunit1"],
            produces=["junit.xml"],
        ),
        Row(
            "`cache`, `pytestconfig`, `doctest_namespace`",
            "3 passed",
            {
                "conftest.py": """
                    import pytest

                    @pytest.fixture(autouse=True)
                    def namespace(doctest_namespace):
                        doctest_namespace["five"] = 5
                """,
                "test_cache.py": '''
                    def counts(cache):
                        number = cache.get("suite/number", 0) + 1
                        cache.set("suite/number", number)
                        return number

                    def test_counts(cache, pytestconfig):
                        assert counts(cache) in (1, 3)
                        assert pytestconfig.cache.get("suite/number", None) in (1, 3)

                    def test_counts_on(cache):
                        assert counts(cache) in (2, 4)

                    def documented():
                        """
                        >>> five
                        5
                        """
                ''',
            },
            ["--doctest-modules"],
            before=[["--doctest-modules"]],
            produces=[".pytest_cache/v/suite/number"],
        ),
    ],
)
