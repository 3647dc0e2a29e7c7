"""However a run ends, nothing of it stays: no process, mount, control group, directory, interface.

The guard of tests/conftest.py compares the machine before and after each test; what these tests add are the ends.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.comparing import Runs
from tests.leftovers import Leftovers

pytestmark = pytest.mark.needs("root", "overlay", "cgroup:memory")

SUITE = {
    "test_long.py": """
        import os
        import subprocess
        import time
        import pytest

        LOG = os.open(os.environ["NSBOX_LOG"], os.O_WRONLY | os.O_APPEND)

        def say(text):
            os.write(LOG, f"{text}\\n".encode())

        @pytest.fixture(scope="session")
        def outer():
            yield
            say("outer torn down")

        @pytest.fixture
        def inner():
            yield
            say("inner torn down")

        def test_before(outer):
            pass

        @pytest.mark.sandbox(mem="200M", net=False, tmpfs=["/mnt"], disk="10M")
        def test_long(outer, inner):
            subprocess.Popen(["sleep", "1000"], start_new_session=True)
            subprocess.Popen(["sleep", "1000"])
            say("running")
            if os.environ.get("DEAF"):
                while True:
                    try:
                        time.sleep(1000)
                    except KeyboardInterrupt:
                        say("deaf")
            time.sleep(1000)

        def test_after():
            say("after")
    """
}


class Going:
    """A run of pytest that has come to the test that does not end."""

    def __init__(self, runs: Runs, *args: str) -> None:
        directory = runs.write(SUITE, "boxed")
        self.log = directory.parent / "log.txt"
        self.log.touch()
        environment = {**os.environ, "NSBOX_LOG": str(self.log)}
        command = [sys.executable, "-m", "pytest", "-p", "nsbox", "--sandbox-all", "-p", "no:cacheprovider", *args]
        self.process = subprocess.Popen(
            command,
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.wait_for("running")

    def said(self) -> list[str]:
        return self.log.read_text(encoding="utf-8").splitlines()

    def wait_for(self, line: str) -> None:
        deadline = time.monotonic() + 30
        while line not in self.said():
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < deadline, f"no {line!r} in {self.said()}"
            time.sleep(0.02)

    def wardens(self) -> list[int]:
        """Children of pytest that are wardens."""
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        pids = [pid for task in tasks for pid in (task / "children").read_text(encoding="ascii").split()]
        return [int(pid) for pid in pids if Path(f"/proc/{pid}/comm").read_text() == "nsbox-warden\n"]

    def end(self, patience: float = 20) -> str:
        return self.process.communicate(timeout=patience)[0]


@pytest.fixture
def going(runs: Runs) -> Iterator[list[Going]]:
    """Runs of pytest, killed at the end if they still go."""
    begun: list[Going] = []
    yield begun
    for each in begun:
        if each.process.poll() is None:
            os.killpg(each.process.pid, signal.SIGKILL)
            each.process.communicate()


def test_ctrl_c_lets_the_test_tear_down_and_ends_the_run(runs: Runs, going: list[Going]):
    run = Going(runs)
    going.append(run)
    os.killpg(run.process.pid, signal.SIGINT)
    output = run.end()
    assert run.process.returncode == 2
    assert run.said() == ["running", "inner torn down", "outer torn down"]
    assert "KeyboardInterrupt" in output
    assert re.search(r"test_long\.py:\d+: KeyboardInterrupt", output)
    assert "1 passed" in output
    assert "INTERNALERROR" not in output


@pytest.mark.parametrize("handler", ["before", "after_in_parent"])
def test_ctrl_c_in_the_midst_of_a_fork_is_not_lost(runs: Runs, handler: str):
    conftest = f"""
        import os, signal

        forks = []

        def interrupt():
            forks.append(1)
            if len(forks) == 3:
                os.kill(os.getpid(), signal.SIGINT)

        os.register_at_fork({handler}=interrupt)
    """
    tests = """
        import pytest

        @pytest.mark.parametrize("number", range(20))
        def test_short(number):
            pass
    """
    done = runs.run(runs.write({"conftest.py": conftest, "test_short.py": tests}, "boxed"))
    output = "\n".join([*done.result.outlines, *done.result.errlines])
    assert done.result.ret == 2
    assert "KeyboardInterrupt" in output
    assert "Exception ignored" not in output
    passed = [report for report in done.reports() if report["when"] == "call"]
    assert 0 < len(passed) < 20


def test_a_second_ctrl_c_ends_a_test_that_ignores_the_first(
    runs: Runs, going: list[Going], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("DEAF", "1")
    run = Going(runs)
    going.append(run)
    os.kill(run.process.pid, signal.SIGINT)
    run.wait_for("deaf")
    os.kill(run.process.pid, signal.SIGINT)
    output = run.end(8)
    assert run.process.returncode == 2
    assert "KeyboardInterrupt" in output


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGKILL"])
def test_a_signal_that_ends_pytest_takes_everything_along(
    runs: Runs, going: list[Going], leftovers: Leftovers, name: str
):
    before = leftovers.snapshot()
    run = Going(runs)
    going.append(run)
    assert len(leftovers.new_since(before, grace=0)) > 5
    run.process.send_signal(getattr(signal, name))
    run.process.wait(5)
    run.end(5)
    assert run.process.returncode == -getattr(signal, name)
    # Gone within seconds, not only at the next run.
    assert not leftovers.new_since(before, grace=3)


def test_a_killed_warden_fails_the_tests_and_the_next_run_sweeps(runs: Runs, going: list[Going], leftovers: Leftovers):
    before = leftovers.snapshot()
    run = Going(runs)
    going.append(run)
    (warden,) = run.wardens()
    os.kill(warden, signal.SIGKILL)
    output = run.end()
    assert run.process.returncode == 1
    assert "warden" in output
    assert "INTERNALERROR" not in output
    assert re.search(r"[12] passed", output)  # a new warden may serve the tests after it
    left = leftovers.new_since(before, grace=1)
    assert not [text for text in left.values() if "process" in text or "mount" in text], left
    quick = runs.run(runs.write({"test_a.py": "def test_a(): pass"}, "next"))
    quick.result.assert_outcomes(passed=1)
    assert not leftovers.new_since(before, grace=3)


def test_a_killed_worker_of_xdist_takes_everything_along(runs: Runs, going: list[Going], leftovers: Leftovers):
    runs.autoload()
    before = leftovers.snapshot()
    run = Going(runs, "-p", "no:hypothesispytest", "-n1", "--max-worker-restart=0")
    going.append(run)
    children = Path(f"/proc/{run.process.pid}/task/{run.process.pid}/children").read_text(encoding="ascii").split()
    for pid in children:
        os.kill(int(pid), signal.SIGKILL)
    output = run.end()
    assert "crashed" in output
    assert not leftovers.new_since(before, grace=3)


def test_stop_and_continue_do_not_disturb(runs: Runs, going: list[Going]):
    run = Going(runs)
    going.append(run)
    os.killpg(run.process.pid, signal.SIGSTOP)
    time.sleep(0.2)
    os.killpg(run.process.pid, signal.SIGCONT)
    os.killpg(run.process.pid, signal.SIGINT)
    run.end()
    assert run.said() == ["running", "inner torn down", "outer torn down"]


def test_a_hundred_tests_leave_pytests_and_the_wardens_memory_and_descriptors_as_they_were(runs: Runs):
    suite = {
        "conftest.py": """
            import os
            import time
            from pathlib import Path

            SEEN = []

            def descriptors(pid):
                # The fewest of a while: boxes that are being taken down hold some yet.
                counts = []
                for _ in range(20):
                    counts.append(len(os.listdir(f"/proc/{pid}/fd")))
                    time.sleep(0.05)
                return min(counts)

            def size(pid):
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])

            def wardens():
                for task in Path("/proc/self/task").iterdir():
                    for pid in (task / "children").read_text().split():
                        # The command line of a fork for a test is pytest's, with the name of this test in it.
                        if Path(f"/proc/{pid}/comm").read_text() == "nsbox-warden\\n":
                            yield pid

            def pytest_runtest_logfinish(nodeid):
                number = int(nodeid.partition("[")[2].rstrip("]"))
                if number in (30, 100):
                    for pid in (os.getpid(), *wardens()):
                        SEEN.append((number, size(pid), descriptors(pid)))

            def pytest_sessionfinish():
                with open(os.environ["NSBOX_LOG"], "w") as log:
                    log.writelines(f"{a} {b} {c}\\n" for a, b, c in SEEN)
        """,
        "test_many.py": """
            import pytest

            @pytest.mark.parametrize("number", range(110))
            def test_many(number):
                open("/etc/made", "w").close()
        """,
    }
    run = runs.run(runs.write(suite, "boxed"), "-q", "--sandbox-set", "mem=200M", timeout=120)
    run.result.assert_outcomes(passed=110)
    seen = [tuple(map(int, line.split())) for line in run.log]
    first, second = ([figures for at, *figures in seen if at == number] for number in (30, 100))
    assert len(first) == len(second) == 2
    for (memory, descriptors), (memory_later, descriptors_later) in zip(first, second, strict=True):
        assert descriptors_later <= descriptors + 5
        assert memory_later <= memory + 3000  # kB; reports are kept by pytest itself
