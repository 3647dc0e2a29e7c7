"""``--sandbox-shell``: a shell in the box of the first test that fails, typed to through a terminal of its own."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.acceptance.comparing import Runs

pytestmark = pytest.mark.needs("root", "overlay", "cgroup:memory")

# Makes the terminal at descriptor 0 the controlling one, and goes on as pytest.
LEADER = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "pytest", *sys.argv[1:]])
"""
READY = "Leave it (exit) to go on with the run."

SUITE: dict[str, str | Path] = {
    "test_shell.py": """
        import os
        import subprocess
        import time
        import pytest

        @pytest.fixture
        def places(monkeypatch):
            os.makedirs("/opt/place")
            monkeypatch.chdir("/opt/place")
            monkeypatch.setenv("OF_THE_TEST", "set-by-the-test")
            daemon = subprocess.Popen(["sleep", "1234"])
            yield
            daemon.kill()
            assert os.path.exists("/opt/place/typed") or os.environ["OF_THE_TEST"] == "unset"

        def test_passes(): pass

        @pytest.mark.sandbox(timeout=2.5, hostname="the-box")
        def test_fails(places):
            with open("made", "w") as file:
                file.write("by the test")
            assert 1 == 2

        def test_fails_too(): assert 0
    """
}


class Terminal:
    """A run of pytest in a terminal of its own."""

    def __init__(self, directory: Path, args: Sequence[str]) -> None:
        self.screen, theirs = pty.openpty()
        self.shown = ""
        command = [sys.executable, "-c", LEADER, "-p", "nsbox", "-p", "no:cacheprovider", "--sandbox-all", *args]
        environment = {**os.environ, "SHELL": "/bin/sh", "PS1": "$ ", "TERM": "dumb"}
        self.process = subprocess.Popen(
            command, cwd=directory, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, env=environment
        )
        os.close(theirs)

    def read_until(self, text: str, seconds: float = 20) -> str:
        """What was shown up to `text`, which must come."""
        deadline = time.monotonic() + seconds
        while text not in self.shown:
            ready, _, _ = select.select([self.screen], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{text!r} was not shown, but:\n{self.shown}"
            try:
                part = os.read(self.screen, 65536)
            except OSError:  # the other side is closed
                part = b""
            assert part, f"{text!r} was not shown, but:\n{self.shown}"
            self.shown += part.decode("utf-8", "replace").replace("\r\n", "\n")
        before, _, self.shown = self.shown.partition(text)
        return before

    def run(self, command: str) -> str:
        """Type a command to the shell; what it printed."""
        os.write(self.screen, f"{command}; echo; echo 'e''nd'\n".encode())
        printed = self.read_until("\nend\n").rpartition("'e''nd'\n")[2].strip()
        return printed.removeprefix("$").strip()  # a prompt that came after what was typed

    def type(self, text: str) -> None:
        os.write(self.screen, text.encode())

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(20)
        os.close(self.screen)


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    yield opened
    for each in opened:
        each.close()


def begin(runs: Runs, terminals: list[Terminal], suite: dict[str, str | Path], *args: str) -> Terminal:
    terminal = Terminal(runs.write(suite, "boxed"), args)
    terminals.append(terminal)
    return terminal


@pytest.mark.parametrize("options", [[], ["-s"], ["--sandbox-set=scope=module"]], ids=["captured", "-s", "group"])
def test_the_shell_is_where_the_test_has_failed(runs: Runs, terminals: list[Terminal], options: list[str]):
    suite = SUITE
    if "--sandbox-set=scope=module" in options:  # one box has one hostname
        suite = {"test_shell.py": str(SUITE["test_shell.py"]).replace(', hostname="the-box"', "")}
    terminal = begin(runs, terminals, suite, "--sandbox-shell", *options)
    header = terminal.read_until(READY)
    assert "sandbox shell: test_shell.py::test_fails failed in call" in header
    assert "assert 1 == 2" in header
    assert terminal.run("pwd").endswith("/opt/place")
    assert terminal.run("cat made").endswith("by the test")
    assert terminal.run("echo $OF_THE_TEST").endswith("set-by-the-test")
    assert "sleep 1234" in terminal.run("cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
    if suite is SUITE:
        assert terminal.run("cat /proc/sys/kernel/hostname").endswith("the-box")
    # Longer than the test's timeout: the time in the shell is not the test's.
    assert terminal.run("sleep 2.5; touch typed") == ""
    # Job control works, so Ctrl-C is for what runs in the shell.
    terminal.type("sleep 1000\n")
    time.sleep(0.5)
    terminal.type("\x03")
    assert terminal.run("echo alive").endswith("alive")
    terminal.type("exit\n")
    rest = terminal.read_until("2 failed, 1 passed")
    assert READY not in rest
    assert "1 error" not in rest
    terminal.process.wait(20)
    assert not os.path.exists("/opt/place")


def test_a_test_that_died_has_a_shell_in_its_box(runs: Runs, terminals: list[Terminal]):
    suite: dict[str, str | Path] = {
        "test_dies.py": """
            import os, time
            import pytest

            @pytest.mark.sandbox(timeout=1.5, env={"OF_THE_BOX": "set-by-the-marker"})
            def test_sleeps():
                open("/opt/of-the-dead", "w").close()
                time.sleep(60)

            def test_dies(): os._exit(3)
        """
    }
    terminal = begin(runs, terminals, suite, "--sandbox-shell")
    assert "sandbox shell: test_dies.py::test_sleeps died in call" in terminal.read_until(READY)
    assert terminal.run("ls /opt/of*").endswith("/opt/of-the-dead")
    assert terminal.run("echo $OF_THE_BOX").endswith("set-by-the-marker")
    terminal.type("exit\n")
    rest = terminal.read_until("2 failed")
    assert READY not in rest
    assert re.search(r"timed out after 1\.5 s \(sandbox timeout\)", rest)
    terminal.process.wait(20)
    assert not os.path.exists("/opt/of-the-dead")


def test_a_shell_without_a_terminal_is_refused(runs: Runs):
    directory = runs.write({"test_a.py": "def test_a(): assert 0"}, "boxed")
    command = [sys.executable, "-m", "pytest", "-p", "nsbox", "--sandbox-all", "--sandbox-shell"]
    run = subprocess.run(
        command, cwd=directory, start_new_session=True, capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 4
    assert "--sandbox-shell: pytest has no terminal (accepted: a run in a terminal's foreground)" in run.stderr


def test_workers_of_xdist_have_no_shell(runs: Runs):
    runs.autoload()
    boxed = runs.run(runs.write({"test_a.py": "def test_a(): pass"}, "boxed"), "--sandbox-shell", "-n1")
    assert boxed.result.ret == 4
    assert "--sandbox-shell: workers of xdist have no terminal (accepted: a run without -n)" in (
        boxed.result.stdout.str() + boxed.result.stderr.str()
    )
