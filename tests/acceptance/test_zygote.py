"""Tests that a zygote forks give the same answers as those that pytest's process does, and zygotes are there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests.acceptance.comparing import Runs, assert_same

pytestmark = pytest.mark.needs("root", "overlay", "cgroup:memory")

COUNTER = """
    import os
    from pytest_nsbox.plugin import RUN

    def pytest_sessionfinish(session):
        with open(os.environ["NSBOX_ZYGOTES"], "w") as file:
            file.write(str(session.config.stash[RUN]._lockstep.nursery.made))
"""


class Counted:
    """Runs of a suite, and how many zygotes each had."""

    def __init__(self, runs: Runs, file: Path) -> None:
        self.runs = runs
        self._file = file

    def boxed(self, suite: dict[str, str], *options: str) -> int:
        run = self.runs.run(self.runs.write(suite, "boxed"), "-p", "counter", *options)
        assert run.result.ret == 0, run.result.stdout.str()
        return self.made()

    def same(self, suite: dict[str, str], *options: str) -> int:
        plain = self.runs.run(self.runs.write(suite, "plain"), *options, boxed=False)
        boxed = self.runs.run(self.runs.write(suite, "boxed"), "-p", "counter", *options)
        assert_same(plain, boxed)
        return self.made()

    def made(self) -> int:
        made = int(self._file.read_text(encoding="ascii"))
        self._file.unlink()
        return made


@pytest.fixture
def counted(runs: Runs, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Counted:
    runs.install("counter", COUNTER)
    monkeypatch.setenv("NSBOX_ZYGOTES", str(pytester.path / "zygotes.txt"))
    return Counted(runs, pytester.path / "zygotes.txt")


ROW = """
    import pytest

    @pytest.mark.parametrize("number", range(60))
    def test_row(number):
        {body}
"""


def row(body: str = "pass") -> str:
    return textwrap.dedent(ROW).replace("{body}", body)


def test_a_row_has_one(counted: Counted):
    assert counted.same({"test_row.py": row()}) == 1


def test_a_short_row_has_none(counted: Counted):
    assert counted.same({"test_row.py": row().replace("60", "12")}) == 0


def test_where_pytest_has_another_thread_there_is_none(counted: Counted):
    suite = {
        "test_row.py": """
            import threading
            import pytest

            @pytest.fixture(scope="session", autouse=True)
            def server():
                done = threading.Event()
                thread = threading.Thread(target=done.wait)
                thread.start()
                yield
                done.set()
                thread.join()

            @pytest.mark.parametrize("number", range(60))
            def test_row(number): pass
        """
    }
    assert counted.boxed(suite) == 1, "the fixture has moved into the boxes"
    assert counted.boxed(suite, "-o", "sandbox_host_fixtures=server") == 0


def test_random_numbers_go_on_from_test_to_test(counted: Counted):
    body = "import random; record_property('drawn', random.random()); assert random.randrange(7) < 7"
    suite = {
        "conftest.py": "import random\nrandom.seed(5)\n",
        "test_row.py": row(body).replace("(number)", "(number, record_property)"),
    }
    assert counted.same(suite) == 1


def test_what_pytest_sets_up_in_the_middle_is_seen(counted: Counted):
    """And what it tears down: where the zygote still held the pipe, its program would not end."""
    suite = {
        "conftest.py": """
            import subprocess
            import pytest

            SEEN = []

            @pytest.fixture(scope="session")
            def late():
                SEEN.append("late")
                return len(SEEN)

            @pytest.fixture(scope="module")
            def program():
                with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
                    yield process.pid
                    process.stdin.close()
                    assert process.wait(20) == 0
        """,
        "test_a.py": """
            import pytest
            from conftest import SEEN

            @pytest.mark.parametrize("number", range(25))
            def test_before(number): assert SEEN == []

            def test_sets_up(late): assert late == 1

            @pytest.mark.parametrize("number", range(25))
            def test_after(number, late): assert (late, SEEN) == (1, ["late"])
        """,
        "test_b.py": """
            import os
            import pytest

            @pytest.mark.parametrize("number", range(25))
            def test_with_program(program, number): assert program > 0
        """,
        "test_c.py": """
            import pytest
            from conftest import SEEN

            def setup_module(): SEEN.append("c")
            def teardown_module(): SEEN.remove("c")

            @pytest.mark.parametrize("number", range(25))
            def test_row(number): assert SEEN == ["late", "c"]
        """,
        "test_d.py": """
            import pytest
            from conftest import SEEN

            class TestOne:
                @pytest.mark.parametrize("number", range(10))
                def test_row(self, number): assert SEEN == ["late"]

            class TestTwo:
                @pytest.mark.parametrize("number", range(10))
                def test_row(self, number): assert SEEN == ["late"]
        """,
    }
    assert counted.same(suite) >= 4


def test_what_is_not_quiet_ends_it_and_the_next_row_has_another(counted: Counted):
    suite = {
        "test_row.py": """
            import sys
            import unittest
            import warnings
            import pytest

            class TestRow(unittest.TestCase):
                def test_subtests(self):
                    for number in range(3):
                        with self.subTest(number=number):
                            pass

            @pytest.mark.parametrize("number", range(150))
            def test_row(number, record_testsuite_property, capsys):
                if number == 20:
                    raise AssertionError("broken")
                if number == 40:
                    warnings.warn("careful")
                if number == 60:
                    pytest.skip("not today")
                if number == 80:
                    pytest.xfail("expected")
                if number == 100:
                    print("some words")
                if number == 120:
                    record_testsuite_property("seen", "yes")
        """
    }
    assert counted.same(suite, "-rA", "--junitxml=junit.xml") >= 2


def test_endings(runs: Runs):
    suite = {
        "test_row.py": """
            import os
            import time
            import pytest

            @pytest.mark.parametrize("number", range(30))
            def test_row(number): pass

            def test_exits(): os._exit(3)

            @pytest.mark.parametrize("number", range(30))
            def test_next(number): pass

            @pytest.mark.sandbox(timeout=1)
            def test_late(): time.sleep(60)

            @pytest.mark.parametrize("number", range(30))
            def test_last(number): pass

            def test_killed(): os.kill(os.getpid(), 9)

            @pytest.mark.parametrize("number", range(3))
            def test_very_last(number): pass
        """
    }
    run = runs.run(runs.write(suite, "boxed"), "-rA")
    run.result.assert_outcomes(passed=93, failed=3)
    assert "exited with status 3" in run.of("test_exits")["longrepr"]
    assert "timed out after 1.0 s" in run.of("test_late")["longrepr"]
    assert "SIGKILL" in run.of("test_killed")["longrepr"]


def test_its_tests_have_the_descriptors_that_others_have(counted: Counted):
    body = """import os, re
    kinds = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            kinds.append(re.sub(r"[0-9]{3,}", "N", os.readlink(f"/proc/self/fd/{fd}")))
        except FileNotFoundError:
            pass  # of the listing itself
    file = "/var/tmp/nsbox-descriptors/seen"
    if number == 0:
        open(file, "w").write(repr(sorted(kinds)))
    assert sorted(kinds) == eval(open(file).read())"""
    directory = Path("/var/tmp/nsbox-descriptors")
    directory.mkdir()
    try:
        words = ("-o", f"sandbox_shared_paths={directory}", "-vv")
        assert counted.boxed({"test_row.py": row(body)}, *words) == 1
    finally:
        for file in directory.iterdir():
            file.unlink()
        directory.rmdir()


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSTOP"])
def test_one_that_somebody_ends_is_missed_by_nobody(counted: Counted, name: str):
    """A plugin that only listens does it, once there is one."""
    counted.runs.install(
        "killer",
        f"""
        import os, signal
        from pytest_nsbox.plugin import RUN

        class Killer:
            def __init__(self, config):
                self.config, self.done = config, False

            def pytest_runtest_logreport(self, report):
                zygote = self.config.stash[RUN]._lockstep.nursery._zygote
                if zygote is not None and zygote.asked > 10 and not self.done:
                    self.done = True
                    os.kill(zygote.pid, signal.{name})

        def pytest_configure(config):
            config.pluginmanager.register(Killer(config))
        """,
    )
    assert counted.boxed({"test_row.py": row()}, "-p", "killer") == 2


def test_ctrl_c_reaches_a_test_that_it_forked(runs: Runs):
    suite = {
        "test_row.py": """
            import time
            import pytest

            @pytest.fixture
            def resource():
                yield
                print("given back")

            @pytest.mark.parametrize("number", range(40))
            def test_row(number): pass

            def test_sleeps(resource):
                open("asleep", "w").close()
                time.sleep(60)

            def test_never(): pass
        """
    }
    directory = runs.write(suite, "boxed")
    words = [sys.executable, "-m", "pytest", "-p", "nsbox", "--sandbox-all", f"-osandbox_shared_paths={directory}"]
    with subprocess.Popen(words, cwd=directory, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        deadline = time.monotonic() + 60
        while not (directory / "asleep").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        assert process.stdout is not None
        said = process.stdout.read()
    assert process.returncode == pytest.ExitCode.INTERRUPTED, said
    assert "KeyboardInterrupt" in said
    assert "40 passed" in said
