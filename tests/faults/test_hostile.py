"""Tests that do their worst to what watches them, and a cgroup file system that turns read-only: the run goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.needs("root", "overlay", "cgroup:memory", "cgroup:pids")

WORST = """
import os, signal, time
import pytest

pytestmark = pytest.mark.sandbox()
EVERY = set(range(1, 65)) - {32, 33}  # glibc keeps these to itself

def test_closes_every_descriptor():
    os.closerange(0, 65536)

def test_writes_to_every_descriptor():
    for fd in range(3, 100):
        try:
            os.write(fd, b"\\xff" * 100)
        except OSError:
            pass

@pytest.mark.sandbox(pids=20, timeout=0.5)
def test_forks_for_ever():
    while True:
        try:
            os.fork()
        except OSError:
            time.sleep(0.05)

@pytest.mark.sandbox(timeout=0.5)
def test_hears_no_signal():
    signal.pthread_sigmask(signal.SIG_BLOCK, EVERY)
    for number in EVERY - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    time.sleep(100)

def test_hears_signals_again():
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

def test_kills_whom_it_can():
    for pid in (os.getppid(), -1, 0):
        os.kill(pid, signal.SIGTERM)

def test_prints_very_much():
    os.write(1, b"x\\n" * 1_000_000)
    assert False

def test_goes_on(): pass
"""

FORGED = """
import json, os, socket, stat, struct
import pytest

REPORT = {
    "nodeid": "test_suite.py::test_other", "location": ["test_suite.py", 1, "x"], "keywords": {}, "outcome": "passed",
    "longrepr": None, "when": "setup", "user_properties": [], "sections": [], "duration": 0.0, "start": 0.0,
    "stop": 0.0, "$report_type": "TestReport",
}
FRAMES = [
    "[" * 100_000,
    {"t": "report"},
    {"t": "report", "report": {}},
    {"t": "report", "report": {**REPORT, "$report_type": "Unknown"}},
    {"t": "report", "report": {**REPORT, "duration": "x"}},
    {"t": "report", "report": {**REPORT, "outcome": "failed", "longrepr": {"reprcrash": None, "reprtraceback": 1}}},
    {"t": "passed", "report": [1, 2, 3]},
    {"t": "log", "report": REPORT},
    {"t": "ask", "what": None},
    {"t": "pdb"},
    {"t": "limit", "seconds": "x"},
    {"t": "end", "coverage": {"": {"lines": {"a": [1 << 60]}}}},
    {"t": "end", "failed_subtests": None},
    {"t": "end", "warnings": [{"filename": "\\0"}]},
    {"t": "interrupt", "place": ["a", 1 << 60, "b"]},
    {"t": "exit", "message": 1},
    {"t": "nonsense"},
]

@pytest.mark.sandbox(timeout=10)
@pytest.mark.parametrize("number", range(len(FRAMES)))
def test_writes(number):
    frame = FRAMES[number]
    data = (frame if isinstance(frame, str) else json.dumps(frame)).encode()
    for fd in range(3, 100):
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                os.write(fd, struct.pack(">I", len(data)) + data)
        except OSError:
            pass

@pytest.mark.sandbox
def test_goes_on(): pass
"""

READ_ONLY = """
import os, subprocess
import pytest

def remount(how):
    for line in open("/proc/self/mountinfo").read().splitlines():
        if " - cgroup" in line:
            subprocess.run(["mount", "-o", f"remount,bind,{how}", line.split()[4]], check=True)

@pytest.mark.sandbox(mem="64M")
def test_before(): pass

@pytest.mark.sandbox(False)
def test_turns_read_only():
    remount("ro")
    for line in open("/proc/self/mountinfo").read().splitlines():
        if " - cgroup" in line:
            with pytest.raises(OSError, match="Read-only file system"):
                os.mkdir(line.split()[4] + "/nsbox-read-only")

@pytest.mark.sandbox(mem="65M")
def test_meanwhile(): pass

@pytest.mark.sandbox(False)
def test_turns_writable(): remount("rw")

@pytest.mark.sandbox(mem="66M")
def test_after(): pass
"""


def run_inner(directory: Path, suite: str, *before: str) -> str:
    (directory / "test_suite.py").write_text(suite)
    (directory / "pytest.ini").write_text("[pytest]\n")
    options = ("-p", "nsbox", "-p", "no:cacheprovider", "-rA", "--tb=line", "--show-capture=no")
    done = subprocess.run(
        [*before, sys.executable, "-m", "pytest", *options],
        cwd=directory,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": "", "COLUMNS": "200"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=120,
        check=False,
    )
    assert "INTERNALERROR" not in done.stdout
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


def told(output: str) -> dict[str, str]:
    """The last word on each test: PASSED, or what failed."""
    found = {}
    for line in output.splitlines():
        outcome, _, nodeid = line.partition(" test_suite.py::")
        if nodeid and outcome in ("PASSED", "FAILED", "ERROR"):
            name, _, message = nodeid.partition(" - ")
            found[name] = f"{outcome} {message}".strip()
    return found


def test_the_worst_that_a_test_can_do_is_told(tmp_path: Path):
    found = told(
        run_inner(tmp_path, WORST.replace("import pytest", "import pytest\npytestmark = pytest.mark.sandbox()"))
    )
    assert found == {
        "test_closes_every_descriptor": "FAILED exited with status 0 before the test ended",
        "test_writes_to_every_descriptor": "FAILED the test wrote 4294967295 bytes of length where a frame starts",
        "test_forks_for_ever": "FAILED timed out after 0.5 s (sandbox timeout)",
        "test_hears_no_signal": "FAILED timed out after 0.5 s (sandbox timeout)",
        "test_hears_signals_again": "PASSED",
        "test_kills_whom_it_can": "FAILED killed by SIGTERM",
        "test_prints_very_much": "FAILED assert False",
        "test_goes_on": "PASSED",
    }


def test_frames_that_a_test_forges_end_that_test(tmp_path: Path):
    found = told(run_inner(tmp_path, FORGED))
    assert found.pop("test_goes_on") == "PASSED"
    assert len(found) == 17
    assert all(text.startswith(("FAILED the test wrote ", "ERROR the test wrote ")) for text in found.values()), found


def test_a_cgroup_file_system_that_turns_read_only_around_pytest_disturbs_nobody(tmp_path: Path):
    """The warden has mounts of its own."""
    found = told(run_inner(tmp_path, READ_ONLY, "unshare", "--mount"))
    names = ("test_before", "test_turns_read_only", "test_meanwhile", "test_turns_writable", "test_after")
    assert found == dict.fromkeys(names, "PASSED")
