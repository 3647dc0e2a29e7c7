"""The guard must see each kind of leftover, or a green suite means nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.leftovers import PARENT, Leftovers, cgroup_mounts, parse_stat


def test_a_child_that_still_runs_is_seen(leftovers: Leftovers):
    before = leftovers.snapshot()
    child = subprocess.Popen(["sleep", "60"])
    try:
        left = leftovers.new_since(before, grace=0)
        assert [text for text in left.values() if text.startswith(f"process {child.pid} (")], left
    finally:
        child.kill()
        child.wait()
    assert not leftovers.new_since(before)


def test_a_daemon_that_left_our_process_tree_is_seen_by_its_tag(leftovers: Leftovers):
    before = leftovers.snapshot()
    # setsid -f forks: the parent ends at once, so the sleeper hangs below pid 1.
    subprocess.run(["setsid", "-f", "sleep", "61"], check=True)
    # It has no environment for a moment, while it becomes the sleeper.
    deadline = time.monotonic() + 10
    while not (left := leftovers.new_since(before, grace=0.1)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert any("(sleep)" in text or "(setsid)" in text for text in left.values()), left
    leftovers.remove(left)
    assert not leftovers.new_since(before)


def test_a_zombie_is_seen(leftovers: Leftovers):
    before = leftovers.snapshot()
    child = subprocess.Popen(["true"])
    left = leftovers.new_since(before, grace=0.2)
    assert any(text.startswith(f"zombie {child.pid}") for text in left.values()), left
    child.wait()


def test_a_directory_in_the_temporary_directory_is_seen(leftovers: Leftovers):
    before = leftovers.snapshot()
    path = Path(tempfile.mkdtemp())
    left = leftovers.new_since(before, grace=0)
    assert str(path) in left.values()
    leftovers.remove(left)
    assert not path.exists()


@pytest.mark.needs("root", "cgroup:pids")
@pytest.mark.skipif(PARENT not in os.environ, reason=f"{PARENT} names no group")
def test_a_control_group_is_seen(leftovers: Leftovers):
    before = leftovers.snapshot()
    parent = os.environ[PARENT].strip("/")
    point = next(point for point, _, options in cgroup_mounts() if "pids" in options or "" in options)
    group = Path(point, parent, "nsbox-x", "box")
    made = [path for path in (group, *group.parents) if not path.exists()]
    group.mkdir(parents=True)
    try:
        left = leftovers.new_since(before, grace=0)
        assert f"control group {group}" in left.values()
    finally:
        for path in made:
            path.rmdir()
    assert not leftovers.new_since(before)


def test_a_pidfd_that_stays_open_is_seen(leftovers: Leftovers):
    before = leftovers.snapshot()
    fd = os.pidfd_open(os.getpid())
    left = leftovers.new_since(before, grace=0)
    os.close(fd)
    assert any(f"descriptor {fd} " in text for text in left.values()), left


def test_what_goes_within_the_grace_is_no_leftover(leftovers: Leftovers):
    before = leftovers.snapshot()
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.3)"])
    started = time.monotonic()
    try:
        assert f"process {child.pid}" in " ".join(leftovers.new_since(before, grace=0).values())
    finally:
        child.wait()
    assert not leftovers.new_since(before, grace=60)
    assert time.monotonic() - started < 50


def test_a_failing_guard_names_what_is_left(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NSBOX_TEST_GRACE", "2")
    root = str(Path(__file__).parents[2])
    pytester.makepyfile(
        conftest=f"import sys\nsys.path.insert(0, {root!r})\nfrom tests.conftest import *",
        test_leak="""
            import subprocess
            def test_leaks():
                subprocess.Popen(["sleep", "62"])
            def test_is_clean():
                pass
        """,
    )
    pytester.makeini("[pytest]\nmarkers = needs: x\n  keeps_running: x\n")
    result = pytester.runpytest_subprocess("-p", "no:nsbox", "-W", "ignore::ResourceWarning")
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["left behind by test_leak.py::test_leaks:", "  process * (sleep) sleep 62"])


def test_a_process_name_with_spaces_and_parentheses_is_read_whole():
    name, fields = parse_stat(b"12 (a ) (b) S 1 12 12 0 -1")
    assert (name, fields[:2]) == ("a ) (b", ["S", "1"])
