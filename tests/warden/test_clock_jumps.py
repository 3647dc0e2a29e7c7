"""The system's clock is set while boxes run. In a virtual machine only: it is the whole machine's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from itertools import cycle
from pathlib import Path

import pytest

pytestmark = pytest.mark.needs("root", "overlay", "clock of its own")

JUMPS = (3600.0, -7200.0, 86400.0 * 400, -86400.0 * 399, 1.0)  # seconds, against what the clock would say
SUITE = """
import time
import pytest

@pytest.mark.sandbox(timeout=60)
@pytest.mark.parametrize("number", range(3))
def test_short(number):
    time.sleep(0.2)

@pytest.mark.sandbox(timeout=0.5)
def test_long():
    time.sleep(60)

def test_container(nsbox):
    assert nsbox.run(["echo", "x"], timeout=60).stdout == "x\\n"
    assert nsbox.run(["sleep", "60"], timeout=0.5).timed_out
    box = nsbox.start(["sleep", "60"])
    assert box.stop(timeout=20) == -15
"""


def test_jumps_of_the_clock_change_no_outcome_and_no_time(tmp_path: Path):
    (tmp_path / "test_suite.py").write_text(SUITE)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    options = ("-p", "nsbox", "--sandbox-all", "-p", "no:cacheprovider", "--sandbox-json=told.json", "-rA")
    ahead = time.time() - time.monotonic()
    with (tmp_path / "output.txt").open("wb") as output:
        run = subprocess.Popen(
            [sys.executable, "-m", "pytest", *options],
            cwd=tmp_path,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
                "PYTEST_ADDOPTS": "",
            },
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        deadline = time.monotonic() + 120
        try:
            for jump in cycle(JUMPS):
                if run.poll() is not None or time.monotonic() > deadline:
                    break
                time.clock_settime(time.CLOCK_REALTIME, time.monotonic() + ahead + jump)
                time.sleep(0.03)
        finally:
            time.clock_settime(time.CLOCK_REALTIME, time.monotonic() + ahead)
            run.kill()
            run.wait()
    said = (tmp_path / "output.txt").read_text()
    assert "1 failed, 4 passed" in said, said
    assert "test_long - timed out after 0.5 s" in said
    usage = {test["nodeid"]: test["usage"] for test in json.loads((tmp_path / "told.json").read_text())["tests"]}
    assert len(usage) == 5
    assert all(0 < used["wall_s"] < 60 for used in usage.values()), usage
