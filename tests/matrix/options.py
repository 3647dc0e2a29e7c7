"""Rows: pytest's command line and ini options."""

from __future__ import annotations

from tests.matrix.row import Row, Section

SUITE = {
    "conftest.py": """
        import pytest

        @pytest.fixture(scope="session")
        def session():
            print("session begins")
            yield
            print("session ends")
    """,
    "test_first.py": """
        import logging
        import os
        import sys
        import warnings
        import pytest

        @pytest.fixture
        def noisy(session):
            print("set up")
            yield
            print("torn down")

        def test_prints(noisy):
            print("to stdout")

        def test_fails(noisy):
            value = {"local": [1]}
            print("before failing")
            assert value == {"local": [2]}

        def test_warns():
            warnings.warn("a warning")

        @pytest.mark.skip(reason="not now")
        def test_skipped():
            pass

        @pytest.mark.xfail(reason="known")
        def test_xfails():
            assert 0

        @pytest.mark.xfail
        def test_xpasses():
            pass

        def test_error_in_setup(request):
            request.getfixturevalue("nothing")
    """,
    "test_second.py": """
        import pytest

        @pytest.fixture
        def broken_teardown():
            yield
            raise RuntimeError("broken")

        def test_error_in_teardown(broken_teardown):
            pass

        def helper(value):
            raise ValueError(value)

        def test_fails_in_a_helper():
            helper("too")

        class TestGroup:
            def test_passes(self, session):
                pass
    """,
}
ALL = "3 failed, 4 passed, 1 skipped, 1 xfailed, 1 xpassed, 1 warning, 1 error"
# pytest's list of all fixtures has one more with the plugin, and junit's messages are cut at a length.
WITHOUT_LIST = ["-k", "not error_in_setup"]
NO_LIST = ALL.replace("3 failed", "2 failed, 1 deselected")
ONE_MORE = "The list of plugins has this one as well."


def _row(feature: str, gives: str, *args: str, **more: object) -> Row:
    return Row(feature, gives, SUITE, args, **more)  # type: ignore[arg-type]


PDB = {
    "test_debug.py": """
        def test_stops():
            value = 41
            breakpoint()
            value += 1
            assert value == 42

        def test_fails():
            local = "seen"
            assert local == "unseen"

        def test_last():
            pass
    """
}

OPTIONS = Section(
    "Options",
    [
        _row("no option", ALL),
        _row("`-x`", "1 failed, 1 passed", "-x"),
        _row("`--maxfail=2`", "2 failed, 2 passed, 1 skipped, 1 xfailed, 1 xpassed, 1 warning", "--maxfail=2"),
        _row("`--lf`", "3 failed, 1 passed, 1 deselected, 1 error", "--lf", before=[[]]),
        _row("`--ff`", ALL, "--ff", "-v", before=[[]]),
        _row("`--sw`", "1 failed, 1 deselected", "--sw", before=[["--sw"]]),
        _row(
            "`--sw --sw-skip`",
            "2 failed, 1 passed, 1 skipped, 1 deselected, 1 xfailed, 1 xpassed, 1 warning",
            *("--sw", "--sw-skip"),
            before=[["--sw"]],
        ),
        _row("`--nf`", ALL, "--nf", before=[["-k", "fails"]]),
        _row("`--durations`", ALL, "--durations=3", "--durations-min=100"),
        _row("`--setup-show`", ALL, "--setup-show"),
        _row("`--setup-only`", "1 skipped, 1 error", "--setup-only"),
        _row("`--setup-plan`", "1 skipped", "--setup-plan"),
        _row("`--collect-only`", "10 tests collected", "--collect-only"),
        _row("`--collect-only -q`", "10 tests collected", "--collect-only", "-q"),
        _row("`-p no:cacheprovider`", ALL, "-p", "no:cacheprovider"),
        _row("`-W error`", "4 failed, 3 passed, 1 skipped, 1 xfailed, 1 xpassed, 1 error", "-W", "error"),
        _row("`--strict-markers`, `--strict-config`", ALL, "--strict-markers", "--strict-config"),
        _row("`--junitxml`", NO_LIST, *WITHOUT_LIST, "--junitxml=junit.xml", produces=["junit.xml"]),
        _row(
            "`--junitxml` with `junit_family=xunit1`, `junit_logging=all`, `junit_duration_report=call`",
            NO_LIST,
            *WITHOUT_LIST,
            *("--junitxml=junit.xml", "-o", "junit_family=xunit1", "-o", "junit_logging=all"),
            *("-o", "junit_duration_report=call", "--junitprefix=x"),
            produces=["junit.xml"],
        ),
        _row("`--runxfail`", "4 failed, 5 passed, 1 skipped, 1 warning, 1 error", "--runxfail"),
        *(_row(f"`--tb={style}`", ALL, f"--tb={style}") for style in ("auto", "long", "short", "line", "native", "no")),
        _row("`--showlocals`", ALL, "--showlocals"),
        _row(
            "`--full-trace`",
            "1 failed, 1 passed, 7 deselected, 1 xpassed",
            *("--full-trace", "-k", "helper or passes"),
            ignore=r"oldfd=\d+",  # of pytest's capture; the warden's socket was opened before it
        ),
        _row("`-v`", ALL, "-v"),
        _row("`-vv`", ALL, "-vv"),
        _row("`-q`", ALL, "-q"),
        _row("`-qq`", "", "-qq"),
        _row("`-rA`", ALL, "-rA"),
        _row("`-ra --no-header --no-summary`", ALL, "-ra", "--no-header", "--no-summary"),
        _row("`--color=yes`", ALL, "--color=yes", "-rA"),
        _row("`-o console_output_style=count`", ALL, "-o", "console_output_style=count"),
        _row(
            "`-k`, `-m`, `--deselect`, node ids",
            "2 passed, 1 deselected, 1 error",
            "test_second.py",
            "-k",
            "not helper",
        ),
        _row("`--import-mode=importlib`", ALL, "--import-mode=importlib"),
        _row("`--import-mode=append`", ALL, "--import-mode=append"),
        _row("`--rootdir`", ALL, "--rootdir=."),
        Row(
            "`-c`, `--confcutdir`",
            "1 passed, 1 skipped",
            {
                "other.ini": "[pytest]\npython_functions = check_*\n",
                "conftest.py": "raise RuntimeError('above the cut')\n",
                "inner/conftest.py": "import pytest\n\n@pytest.fixture\ndef value():\n    return 5\n",
                "inner/test_checks.py": "import pytest\n\ndef check_value(value):\n    assert value == 5\n\n"
                "def check_skip():\n    pytest.skip('inside')\n\ndef test_not_collected():\n    assert 0\n",
            },
            ["-c", "other.ini", "--confcutdir=inner", "inner"],
        ),
        Row(
            "`--noconftest`",
            "1 passed",
            {"conftest.py": "raise RuntimeError('not read')\n", "test_it.py": "def test_it(): pass\n"},
            ["--noconftest"],
        ),
        _row("`--debug`", ALL, "--debug=debug.log", reason=ONE_MORE),
        _row("`--trace-config`", ALL, "--trace-config", reason=ONE_MORE),
        _row("`-o faulthandler_timeout`", ALL, "-o", "faulthandler_timeout=5"),
        _row("`--assert=plain`", ALL, "--assert=plain"),
        _row(
            "`--cache-show`, `--cache-clear`",
            ALL,
            "--cache-clear",
            before=[[]],
            produces=[".pytest_cache/v/cache/lastfailed"],
        ),
        _row("`--fixtures-per-test`, `--markers`", "9 deselected", "--fixtures-per-test", "-k", "prints"),
        Row(
            "`--pdb`",
            "1 failed, 2 passed",
            PDB,
            ["--pdb", "-p", "no:cacheprovider"],
            types="p value\nc\np local\nc\n",
        ),
        Row("`--pdb`, left with `q`", "1 failed, 1 passed", PDB, ["--pdb"], types="c\nq\n"),
        Row("`breakpoint()` without `--pdb`", "1 failed, 2 passed", PDB, [], types="p value\nn\nc\n"),
        Row(
            "`--trace`",
            "2 passed",
            {
                "test_trace.py": "def test_one():\n    x = 1\n    assert x\n\n"
                "def test_two(tmp_path):\n    assert tmp_path\n"
            },
            ["--trace"],
            types="n\np x\nc\nc\n",
            ignore="^> .*",
        ),
        Row(
            "`--pdbcls`",
            "1 failed",
            {
                "own_debugger.py": """
                    class Debugger:
                        quitting = False

                        def __init__(self, *args, **kwargs): pass
                        def reset(self): pass
                        def interaction(self, frame, *rest):
                            print("debugger was here")
                """,
                "test_it.py": "def test_fails():\n    assert 0\n",
            },
            ["--pdb", "--pdbcls=own_debugger:Debugger"],
        ),
    ],
)
