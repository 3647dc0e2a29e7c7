"""Rows of the published matrix that need no other plugin and that no other test has; see tests/matrix."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.comparing import Runs
from tests.matrix.endings import ENDINGS, KINDS
from tests.matrix.fixtures import FIXTURES
from tests.matrix.options import OPTIONS
from tests.matrix.row import Row
from tests.matrix.running import compare

pytestmark = pytest.mark.needs("root", "overlay", "cgroup:memory")

CHOSEN = [
    *(row for row in FIXTURES.rows if row.feature.startswith(("fixtures that fail", "unittest: `setUpClass`, "))),
    *(row for row in ENDINGS.rows if row.feature.startswith(("`SystemExit`", "a hook that raises", "another `Base"))),
    *(row for row in KINDS.rows if row.feature.startswith(("doctests", "items that are no"))),
    *(row for row in OPTIONS.rows if row.feature in ("`--pdb`", "`--pdb`, left with `q`", "`--pdbcls`")),
]


@pytest.mark.parametrize("row", CHOSEN, ids=[row.feature for row in CHOSEN])
def test_a_feature_of_pytest_gives_what_it_gives_without_boxes(row: Row, tmp_path: Path):
    compared = compare(row, tmp_path / "run")
    assert not compared.problem
    differing = {way for way, lines in compared.found.items() if lines}
    assert differing <= set(row.differs if row.reason else ()), "\n".join(
        line for lines in compared.found.values() for line in lines
    )


LOGS = {
    "conftest.py": """
        import logging
        import pytest

        log = logging.getLogger("suite")

        @pytest.fixture(scope="session")
        def outer():
            log.warning("outer set up")
            yield
            log.warning("outer torn down")

        def pytest_runtest_logreport(report):
            if report.when == "setup":
                log.warning("report of %s", report.when)
    """,
    "test_logs.py": """
        import gc
        import logging
        import unittest

        def test_one(outer):
            logging.warning("one")

        def test_resource(tmp_path):
            open(tmp_path / "file", "w")
            gc.collect()

        class TestSub(unittest.TestCase):
            def test_sub(self):
                print("before")
                with self.subTest():
                    pass
                print("after")
    """,
}


@pytest.mark.parametrize(
    "args", [["-rA"], ["-o", "log_cli=true"], ["-W", "default"]], ids=["sections", "live", "warnings"]
)
def test_logs_of_outer_fixtures_subtests_in_the_capture_and_warnings_with_a_source(runs: Runs, args: list[str]):
    runs.same(LOGS, *args)


def test_a_failed_test_is_told_of_state_that_an_earlier_test_changed_in_its_own_box(runs: Runs):
    suite = {
        "test_state.py": """
            import pytest

            STATE = []

            def test_fills():
                STATE.append(1)

            @pytest.fixture
            def inner():
                yield

            def test_reads(inner):
                assert STATE == [1]

            class TestSteps:
                def test_one(self):
                    type(self).made = 1

                def test_two(self):
                    assert self.made == 1

            def test_fails_by_itself():
                assert 0
        """,
        "test_grouped.py": """
            import pytest

            pytestmark = pytest.mark.sandbox(scope="module")
            STATE = []

            def test_fills():
                STATE.append(1)

            def test_reads():
                assert STATE == [2]
        """,
    }
    boxed = runs.run(runs.write(suite, "boxed"))
    boxed.result.assert_outcomes(passed=3, failed=4)
    title = "sandbox: state of another test"
    calls = [report for report in boxed.reports() if report["when"] == "call"]
    told = {report["nodeid"]: dict(report["sections"]).get(title, "") for report in calls}
    assert "STATE: this test reads it, and test_fills changes it\n" in told["test_state.py::test_reads"]
    assert "TestSteps.made: " in told["test_state.py::TestSteps::test_two"]
    assert not told["test_state.py::test_fails_by_itself"]
    assert not told["test_grouped.py::test_reads"]
    boxed.result.stdout.fnmatch_lines(["*- sandbox: state of another test -*", '*sandbox(scope="module")*'])


def test_a_fixture_that_cannot_be_set_up_twice_in_a_process_is_told(runs: Runs):
    suite = {
        "conftest.py": """
            import pytest, threading

            class Shared:
                instance, closed = None, False

                def __init__(self):
                    self.end = threading.Event()
                    self.thread = threading.Thread(target=self.end.wait)
                    self.thread.start()

            @pytest.fixture(scope="session")
            def shared():
                if Shared.instance is None:
                    Shared.instance = Shared()
                yield Shared.instance
                Shared.instance.end.set()
                Shared.instance.thread.join()
                Shared.instance.closed = True
        """,
        "test_shared.py": """
            def test_uses(shared):
                if shared.closed:
                    raise OSError(9, "Bad file descriptor")

            def test_fails_for_a_reason_of_its_own(shared):
                assert 0
        """,
    }
    boxed = runs.run(runs.write(suite, "boxed"))
    boxed.result.assert_outcomes(failed=2)
    told = boxed.of("test_uses")["sections"]
    assert any(
        "sandbox_box_fixtures = shared" in text for title, text in told if title == "sandbox: fixture set up again"
    )
    assert not boxed.of("test_fails_for_a_reason_of_its_own")["sections"]
    boxed = runs.run(runs.write(suite, "in_boxes"), "-o", "sandbox_box_fixtures=shared")
    boxed.result.assert_outcomes(passed=1, failed=1)
