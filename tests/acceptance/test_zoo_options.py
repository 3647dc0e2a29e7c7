"""pytest's own options mean with boxes what they mean without."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET

import pytest

from tests.acceptance.comparing import Recorded, Runs, assert_same, difference, made_equal

pytestmark = pytest.mark.needs("root", "overlay", "cgroup:memory")

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

        log = logging.getLogger("suite")

        @pytest.fixture
        def noisy(session):
            print("set up")
            log.warning("in set-up")
            yield
            print("torn down")
            log.warning("in tear-down")

        def test_prints(noisy):
            print("to stdout")
            print("to stderr", file=sys.stderr)
            sys.__stdout__.flush()
            os.system("echo of a child")
            log.info("info")
            log.error("error")

        def test_fails(noisy, record_property, record_testsuite_property):
            record_property("key", "value")
            record_testsuite_property("suite key", 5)
            value = {"local": [1]}
            print("before failing")
            log.error("an error")
            assert value == {"local": [2]}

        def test_warns():
            warnings.warn("a warning")

        @pytest.mark.skip(reason="not now")
        def test_skipped():
            pass

        @pytest.mark.xfail(reason="known")
        def test_xfails():
            assert 0

        def test_error_in_setup(request):
            request.getfixturevalue("nothing")
    """,
    "test_second.py": """
        import pytest

        @pytest.fixture
        def broken_teardown():
            yield
            raise RuntimeError("broken")

        def test_error_in_teardown(broken_teardown, record_testsuite_property):
            record_testsuite_property("other key", "x")

        def test_fails_too():
            raise ValueError("too")

        class TestGroup:
            def test_passes(self, session):
                pass
    """,
}
NO_PLUGINS = ["-p", "no:logging", "-p", "no:warnings", "-p", "no:faulthandler"]
LOG_CLI = ["-o", "log_cli=true", "-o", "log_cli_level=INFO", "-o", "log_level=DEBUG"]


@pytest.mark.parametrize(
    "args",
    [
        pytest.param(["-x"], id="exitfirst"),
        pytest.param(["--maxfail=2", "-v", "--durations=5", "--durations-min=100"], id="maxfail"),
        pytest.param(["-s", "-v"], id="no capture"),
        pytest.param(["--capture=sys", "-rA"], id="capture sys"),
        pytest.param(["--capture=tee-sys", "-rP"], id="capture tee-sys"),
        pytest.param(["-W", "error", "-rfE", "--tb=short"], id="warnings are errors"),
        pytest.param([*LOG_CLI, "--log-file=run.log", "--log-file-level=DEBUG"], id="live log"),
        pytest.param(["--tb=native", "--color=yes", "-vv", "--no-header"], id="colours"),
        pytest.param(["--tb=line", "-q", *NO_PLUGINS], id="fewer plugins"),
        pytest.param(["--import-mode=importlib", "--no-summary", "-p", "no:cacheprovider"], id="importlib"),
        pytest.param(["-o", "faulthandler_timeout=5", "--show-capture=stderr"], id="faulthandler"),
        pytest.param(["-k", "passes or warns", "--runxfail", "-vv"], id="selection"),
    ],
)
def test_options_mean_the_same(runs: Runs, args: list[str]):
    plain, boxed = runs.same(SUITE, *args)
    if "--log-file=run.log" in args:
        logs = [re.sub(r":\d+", ":<line>", (run.path / "run.log").read_text()) for run in (plain, boxed)]
        assert sorted(logs[0].splitlines()) == sorted(logs[1].splitlines())


@pytest.mark.parametrize("again", [["--lf"], ["--ff", "-v"], ["--sw"], ["--nf", "--sw-skip"]], ids=" ".join)
def test_the_cache_of_one_run_steers_the_next(runs: Runs, again: list[str]):
    first = ["--sw"] if again[0] == "--sw" else []
    plain, boxed = runs.same(SUITE, *first)
    plain = runs.run(plain.path, *again, boxed=False)
    boxed = runs.run(boxed.path, *again)
    assert_same(plain, boxed)


def junit(run: Recorded) -> list[str]:
    """junit.xml as lines, without times, host and our properties."""
    tree = ET.parse(run.path / "junit.xml")
    for parent in tree.iter():
        for name in ("time", "timestamp", "hostname"):
            parent.attrib.pop(name, None)
        if "fixture 'nothing' not found" in parent.get("message", ""):
            # pytest >= 9.2 cuts it at a length, and with the plugin it lists more. The element's text is whole.
            del parent.attrib["message"]
        for properties in parent.findall("properties"):
            for element in properties.findall("property"):
                if element.get("name", "").startswith("sandbox."):
                    properties.remove(element)
            if not len(properties):
                parent.remove(properties)
    text: str = made_equal(ET.tostring(tree.getroot(), encoding="unicode"), run.path)
    return text.replace("><", ">\n<").splitlines()


def test_junit_is_the_plain_one_with_usage_added(runs: Runs):
    args = ["--junitxml=junit.xml", "-o", "junit_family=xunit1", "-o", "junit_logging=all", "-W", "ignore"]
    plain, boxed = runs.same(SUITE, *args, terminal=False)
    found = difference("junit", junit(plain), junit(boxed))
    assert not found, "\n".join(found)


ENDS = {
    "test_a.py": """
        import os
        import pytest

        LOG = os.open(os.environ["NSBOX_LOG"], os.O_WRONLY | os.O_APPEND)

        @pytest.fixture(scope="session")
        def outer():
            yield
            os.write(LOG, b"outer torn down\\n")

        @pytest.fixture
        def inner():
            yield
            os.write(LOG, b"inner torn down\\n")

        def test_before(outer):
            pass

        def test_exits(outer, inner):
            pytest.exit("enough", returncode=7)

        def test_interrupts(outer, inner):
            raise KeyboardInterrupt

        def test_stops_softly(request, inner):
            request.session.shouldstop = "asked for by a test"

        def test_fails_the_session(request, inner):
            request.session.shouldfail = "failed by a test"

        @pytest.fixture
        def exits():
            pytest.exit("in a fixture")

        def test_exits_in_setup(outer, exits):
            pass

        @pytest.fixture
        def exits_late():
            yield
            pytest.exit("in a tear-down")

        def test_exits_in_teardown(outer, exits_late):
            pass

        def test_after():
            pass
    """
}


@pytest.mark.parametrize(
    "name",
    [
        "test_exits",
        "test_interrupts",
        "test_stops_softly",
        "test_fails_the_session",
        "test_exits_in_setup",
        "test_exits_in_teardown",
    ],
)
def test_a_test_that_ends_the_run_ends_it_as_in_plain_pytest(runs: Runs, name: str):
    plain, boxed = runs.same(ENDS, "-k", f"{name} or test_before or test_after")
    assert boxed.log == plain.log
    assert not boxed.reports("test_after")


RETENTION = {
    "test_tmp.py": """
        import pytest

        def test_passes(tmp_path):
            (tmp_path / "file").write_text("passes")

        def test_fails(tmp_path):
            (tmp_path / "file").write_text("fails")
            assert 0

        def test_dies(tmp_path):
            (tmp_path / "file").write_text("dies")
            import os
            if open("dies").read() == "1":
                os._exit(1)
            assert 0

        def test_error(tmp_path, request):
            request.addfinalizer(lambda: 1 / 0)
    """,
    "dies": "0",
}


@pytest.mark.parametrize("policy", ["all", "failed", "none"])
def test_tmp_path_is_kept_as_pytest_is_told(runs: Runs, policy: str, monkeypatch: pytest.MonkeyPatch):
    kept = {}
    for name in ("plain", "boxed"):
        directory = runs.write(RETENTION, name)
        root = directory.parent / "root"
        root.mkdir()
        monkeypatch.setenv("PYTEST_DEBUG_TEMPROOT", str(root))
        monkeypatch.chdir(directory)
        ours = ["-p", "nsbox", "--sandbox-all"] if name == "boxed" else []
        # not runpytest_subprocess: it names a base temp, and pytest then keeps everything
        command = [sys.executable, "-m", "pytest", *ours, "-o", f"tmp_path_retention_policy={policy}", "-q"]
        runs.pytester.run(*command).stdout.fnmatch_lines(["*2 failed, 2 passed, 1 error*"])
        kept[name] = sorted(str(path.relative_to(root)) for path in root.glob("*/*/*/*"))
        kept[name] += sorted(str(path.relative_to(root)) for path in root.glob("*/*/*"))
    assert kept["boxed"] == kept["plain"]


def test_the_tmp_path_of_a_test_that_died_is_kept_as_that_of_a_failed_one(runs: Runs):
    directory = runs.write({**RETENTION, "dies": "1"}, "boxed")
    boxed = runs.run(directory, "-o", "tmp_path_retention_policy=failed")
    boxed.result.assert_outcomes(passed=2, failed=2, errors=1)
    base = max(runs.pytester.path.glob("runpytest-*"))
    assert {path.name for path in base.iterdir() if not path.is_symlink()} == {"test_dies0", "test_fails0"}


def test_collection_only_and_help_start_nothing(runs: Runs):
    directory = runs.write(SUITE, "boxed")
    for args, lines in (
        (["--collect-only", "-q"], ["test_first.py::test_prints", "9 tests collected*"]),
        (["--help"], ["*--sandbox-all*"]),
        (["--markers"], ["@pytest.mark.sandbox(cpu=*"]),
        (["--fixtures", "-q"], ["sandbox*"]),
    ):
        runs.run(directory, *args).result.stdout.fnmatch_lines(lines)
