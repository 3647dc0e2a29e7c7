"""Very many boxes in one session: what the processes hold stays as it was, and so does the time that a test takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

pytestmark = [
    pytest.mark.needs("root", "overlay", "cgroup:memory", "cgroup:pids"),
    pytest.mark.skipif("NSBOX_SOAK" not in os.environ, reason="takes minutes: NSBOX_SOAK=1 runs it"),
]

BOXES = int(os.environ.get("NSBOX_SOAK_BOXES", "20000"))
CONFTEST = """
import json, os, time
from pathlib import Path

SEEN, STEP = [], int(os.environ["STEP"])
COUNT = {"tests": 0, "began": time.perf_counter()}

def size(pid):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])

def wardens():
    for task in Path("/proc/self/task").iterdir():
        for pid in (task / "children").read_text().split():
            if "warden" in Path(f"/proc/{pid}/cmdline").read_text():
                yield pid

def pytest_runtest_logfinish():
    COUNT["tests"] += 1
    if COUNT["tests"] % STEP == 0:
        now = time.perf_counter()
        each = (now - COUNT["began"]) / STEP
        time.sleep(1)  # for what is being taken down
        held = [(size(pid), len(os.listdir(f"/proc/{pid}/fd"))) for pid in (os.getpid(), *wardens())]
        inodes = os.statvfs(os.environ["TMPDIR"])
        SEEN.append({"each": each, "held": held, "inodes": inodes.f_files - inodes.f_ffree,
                     "entries": len(os.listdir(os.environ["TMPDIR"]))})
        COUNT["began"] = time.perf_counter()

def pytest_sessionfinish():
    Path("seen.json").write_text(json.dumps(SEEN))
"""
SUITE = """
import os, pytest

@pytest.mark.sandbox(mem="200M", pids=50)
@pytest.mark.parametrize("number", range(int(os.environ["BOXES"])))
def test_many(number):
    open("/etc/made", "w").close()
"""


def test_boxes_without_end_leave_everything_as_it_was(tmp_path: Path):
    step = BOXES // 10
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_many.py").write_text(SUITE)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "nsbox", "-p", "no:cacheprovider", "-q", "--sandbox-report=none"],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "BOXES": str(BOXES),
            "STEP": str(step),
            "TMPDIR": str(scratch),
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=BOXES,
        check=False,
    )
    assert f"{BOXES} passed" in done.stdout, done.stdout[-2000:] + done.stderr[-2000:]
    seen = json.loads((tmp_path / "seen.json").read_text())
    print(*seen, sep="\n")  # noqa: T201 - the figures, for `-s`
    first, last = seen[1], seen[-1]
    assert len(first["held"]) == len(last["held"]) == 2
    for (size, descriptors), (size_later, descriptors_later) in zip(first["held"], last["held"], strict=True):
        assert descriptors_later <= descriptors + 5
        # Pytest keeps the reports of every test: some kB each.
        assert size_later <= size + 10_000 + 8 * BOXES
    warden, warden_later = first["held"][1][0], last["held"][1][0]
    assert warden_later <= warden * 1.1 + 1000
    assert last["entries"] <= first["entries"] + 5
    assert median(each["each"] for each in seen[-3:]) <= 1.1 * median(each["each"] for each in seen[1:4])
