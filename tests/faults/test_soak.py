"""Very many boxes in one session: what processes and the kernel hold stays as it was, and so does the cost of a test.

NSBOX_SOAK=1 runs it; NSBOX_SOAK_BOXES is how many (20,000), and `-s` prints the figures. The cost is CPU time, of
pytest, of the warden and of all that they started, since other work on the machine makes each of them wait; and it is
compared with the CPU time that starting Python took meanwhile, since other work makes the processors themselves slower.
"""

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
LOOKS = 10
CONFTEST = """
import json, os, statistics, sys, time
from pathlib import Path

SEEN, STEP = [], int(os.environ["STEP"])
COUNT = {"tests": 0, "began": time.perf_counter(), "used": 0.0, "starts": []}

def start():
    "CPU seconds of an empty Python, in no box."
    pid = os.posix_spawn(sys.executable, [sys.executable, "-I", "-S", "-c", ""], os.environ)
    used = os.wait4(pid, 0)[2]
    return used.ru_utime + used.ru_stime

def fields(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()

def family(pid="self"):
    "Processes with names of ours below pytest's: the warden and its janitor."
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            name = Path(f"/proc/{child}/comm").read_text().strip()
            if name in ("nsbox-warden", "nsbox-janitor"):
                yield name, child
                yield from family(child)

def status(pid, name):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])

def numbers(path, *names):
    found = dict(line.split()[:2] for line in Path(path).read_text().splitlines())
    return {name: int(found[name + ":"]) for name in names}

def look():
    everyone = [("pytest", os.getpid()), *family()]
    ticks = sum(int(text) for _, pid in everyone for text in fields(pid)[11:15])
    place = os.statvfs(os.environ["TMPDIR"])
    cgroups = [line.split() for line in Path("/proc/cgroups").read_text().splitlines()[1:]]
    groups = {name: int(count) for name, _, count, _ in cgroups if name in ("memory", "pids")}
    return ticks / os.sysconf("SC_CLK_TCK"), {
        "resident_kB": {name: status(pid, "VmRSS") for name, pid in everyone},
        "descriptors": {name: len(os.listdir(f"/proc/{pid}/fd")) for name, pid in everyone},
        "entries": len(os.listdir(os.environ["TMPDIR"])),
        # Of the whole machine, whatever else it does:
        "inodes": place.f_files - place.f_ffree,
        "mounts": len(Path("/proc/self/mountinfo").read_text().splitlines()),
        "keys": len(Path("/proc/keys").read_text().splitlines()),
        "processes": sum(name.isdigit() for name in os.listdir("/proc")),
        "cgroups": groups,
        "kernel_kB": numbers("/proc/meminfo", "SUnreclaim", "SReclaimable", "Percpu", "KernelStack", "PageTables"),
    }

def pytest_runtest_logfinish():
    COUNT["tests"] += 1
    if COUNT["tests"] % max(1, STEP // 50) == 0:
        COUNT["starts"].append(start())
    if COUNT["tests"] % STEP == 0:
        wall = (time.perf_counter() - COUNT["began"]) / STEP
        time.sleep(1)  # for what is being taken down
        used, seen = look()
        cpu, start_of_python = (used - COUNT["used"] - sum(COUNT["starts"])) / STEP, statistics.median(COUNT["starts"])
        SEEN.append({"tests": COUNT["tests"], "wall": wall, "cpu": cpu, "start": start_of_python, **seen})
        COUNT["starts"] = []
        Path("seen.json").write_text(json.dumps(SEEN))
        COUNT["began"], COUNT["used"] = time.perf_counter(), used
"""
SUITE = """
import os, pytest

@pytest.mark.sandbox(mem="200M", pids=50, net=False)
@pytest.mark.parametrize("number", range(int(os.environ["BOXES"])))
def test_many(number):
    open("/etc/made", "w").close()
"""


def test_boxes_without_end_leave_everything_as_it_was(tmp_path: Path):
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
            "STEP": str(BOXES // LOOKS),
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
    assert set(first["resident_kB"]) == {"pytest", "nsbox-warden", "nsbox-janitor"}
    for name, count in first["descriptors"].items():
        assert last["descriptors"][name] <= count + 5
    for name, size in first["resident_kB"].items():
        # Pytest keeps the reports of every test: some kB each.
        assert last["resident_kB"][name] <= size * 1.1 + 1000 + (8 * BOXES if name == "pytest" else 0)
    assert last["entries"] <= first["entries"] + 5
    assert last["mounts"] <= first["mounts"] + 50
    cost = [each["cpu"] / each["start"] for each in seen]
    print("cost in starts of Python:", *(f"{each:.2f}" for each in cost))  # noqa: T201
    assert median(cost[-3:]) <= 1.1 * median(cost[1:4])
