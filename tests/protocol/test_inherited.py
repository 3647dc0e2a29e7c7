"""Processes that pytest's process started: a test reaches them, and is told that it cannot wait for them."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import os, subprocess, sys
outer = subprocess.Popen(["sleep", "100"])
ended = subprocess.Popen(["true"]); ended.wait()
from pytest_nsbox.inherited import NotInThisBoxError, guard_popen
pid = os.fork()
if pid == 0:
    status = 1
    try:
        guard_popen()
        for ask in (outer.poll, outer.wait, lambda: outer.wait(timeout=1), lambda: outer.communicate()):
            try:
                ask()
            except NotInThisBoxError as error:
                assert "sleep" in str(error) and str(outer.pid) in str(error)
                assert "sandbox_box_fixtures" in str(error)
            else:
                raise AssertionError("it answered")
        assert ended.poll() == ended.wait() == 0
        own = subprocess.Popen(["sh", "-c", "exit 3"])
        assert own.wait() == 3 == own.poll()
        assert subprocess.run(["cat"], input=b"x", capture_output=True).stdout == b"x"
        del outer
        status = 0
    finally:
        os._exit(status)
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
assert outer.poll() is None
outer.kill()
outer.wait()
sys.exit(status)
"""


def test_only_own_processes_can_be_waited_for_in_a_fork():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
